"""Tools: features, and what is measured on sets of them."""
