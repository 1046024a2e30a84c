"""Tools: one training loop for everything that learns."""
