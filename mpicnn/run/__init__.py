"""A training run: its loop, what it shows and what it leaves."""
