"""Networks, pure: plain arguments, no configuration object, no device, no input or output."""
