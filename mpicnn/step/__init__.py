"""One training step: a program carried out, weights and gradients on their cursor, the update."""
