"""The checks of single images, one file each, in the order in which an image is asked.

The first check that an image fails is its reason. To add one, write a module with a `Check` and its `FittedCheck`, and
add a line to `REGISTRY`.
"""

from __future__ import annotations

from rebalance.errors import InputError
from rebalance.filtering.checks.base import Check
from rebalance.filtering.checks.influence import InfluenceCheck
from rebalance.filtering.checks.low_confidence import LowConfidenceCheck
from rebalance.filtering.checks.memorised import MemorisedCheck
from rebalance.filtering.checks.outlier import OutlierCheck

REGISTRY: dict[str, Check] = {
    OutlierCheck.name: OutlierCheck(),
    LowConfidenceCheck.name: LowConfidenceCheck(),
    MemorisedCheck.name: MemorisedCheck(),
    InfluenceCheck.name: InfluenceCheck(),
}

OUTLIER, LOW_CONFIDENCE = OutlierCheck.name, LowConfidenceCheck.name
MEMORISED, INFLUENCE = MemorisedCheck.name, InfluenceCheck.name


def check_names() -> tuple[str, ...]:
    """Return the names of all checks, in order."""
    return tuple(REGISTRY)


def check_named(name: str) -> Check:
    """Return a check.

    Raises:
        InputError: there is none of this name.
    """
    if name not in REGISTRY:
        raise InputError("filtering.checks is unknown", value=name, allowed=", ".join(REGISTRY))
    return REGISTRY[name]
