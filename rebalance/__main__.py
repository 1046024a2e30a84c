"""`python -m rebalance`: the same as the `rebalance` command."""

from rebalance.cli import main

if __name__ == "__main__":
    main()
