"""Launcher: runs the command line of a clone that has not been installed (`python cli.py --help`)."""

from rebalance.cli import main

if __name__ == "__main__":
    main()
