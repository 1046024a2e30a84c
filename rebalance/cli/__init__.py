"""The command line: options and calls; the only place that knows flags.

`commands` holds the commands, `options` what they share, `flags` translates library messages, `entry` runs it all.
"""

from rebalance.cli.entry import main

__all__ = ["main"]
