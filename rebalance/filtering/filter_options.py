"""Which checks are asked of single images, and the limits that a user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rebalance.errors import InputError
from rebalance.filtering.checks import REGISTRY, check_named, check_names
from rebalance.filtering.checks.base import Check


@dataclass(frozen=True)
class FilterOptions:
    """Which checks are asked, and limits that replace calibrated ones.

    Attributes:
        checks: names of registered checks.
        limits: limits by the parameter's name, such as "keep"; the others are calibrated.
    """

    checks: tuple[str, ...] = field(default_factory=check_names)
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            InputError: an unknown check or limit, or a limit outside its range; the message names the parameter.
        """
        for name in self.checks:
            check_named(name)
        by_parameter = {check.limit.parameter: check.limit for check in REGISTRY.values() if check.limit}
        for parameter, value in self.limits.items():
            if parameter not in by_parameter:
                raise InputError("unknown limit of a check", value=parameter, allowed=", ".join(by_parameter))
            by_parameter[parameter].check(value)

    @classmethod
    def asked(cls, names: Sequence[str], choice: object) -> FilterOptions:
        """Return the checks that are named or whose limit is given, in the registered order.

        Args:
            names: names of checks.
            choice: holds the user's limits as attributes that have the parameters' names, as `FilterChoice` does; None
                and missing ones are calibrated.
        """
        for name in names:
            check_named(name)
        limits: dict[str, float] = {}
        for check in REGISTRY.values():
            value = getattr(choice, check.limit.parameter, None) if check.limit else None
            if check.limit and value is not None:
                limits[check.limit.parameter] = value
        checks = (name for name, check in REGISTRY.items() if name in names or _limit(check, limits) is not None)
        return cls(tuple(checks), limits)

    def ordered(self) -> list[Check]:
        """Return the checks that are asked, in the registered order."""
        return [check for name, check in REGISTRY.items() if name in self.checks]

    def limit_of(self, check: Check) -> float | None:
        """Return the user's limit of a check; None: calibrate it."""
        return _limit(check, self.limits)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain values: the checks, and the limit of every check that can have one."""
        limits = (check.limit.parameter for check in REGISTRY.values() if check.limit)
        return {"checks": list(self.checks)} | {parameter: self.limits.get(parameter) for parameter in limits}


def _limit(check: Check, limits: Mapping[str, float]) -> float | None:
    return limits.get(check.limit.parameter) if check.limit else None
