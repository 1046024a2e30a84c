"""What a caller asks images and classes to pass."""

from __future__ import annotations

from rebalance.config.requests import FilterChoice
from rebalance.filtering import Criteria, FilterOptions


def asked_criteria(choice: FilterChoice, checks: tuple[str, ...]) -> Criteria:
    """Return the criteria of a call: checks by default, where images are filtered, and those whose limit is given.

    Args:
        choice: what the caller chose.
        checks: the checks that are asked by default.

    Raises:
        InputError: a limit out of range.
    """
    options = FilterOptions.asked(checks if choice.filter_images else (), choice)
    return Criteria.asked(options, choice.max_fid, choice.max_kid)
