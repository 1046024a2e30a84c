"""No remedy: every image is drawn equally often and counts the same."""

from __future__ import annotations

from rebalance.trials.remedies.base import Remedy


class Plain(Remedy):
    """Training as if classes were balanced."""

    name = "plain"
    usual = (False, True)
