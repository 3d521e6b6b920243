"""One training step: carry out a program, bring weights and gradients where they belong, update."""
