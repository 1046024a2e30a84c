"""The version of the package, read by the build and by `rebalance --version`."""

__version__ = "0.1.0"
