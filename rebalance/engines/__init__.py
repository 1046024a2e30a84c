"""Tools: where work is done, in this process or in several; they know nothing of images."""
