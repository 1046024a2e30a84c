"""What images and classes must pass, as a user asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rebalance.errors import InputError
from rebalance.filtering.filter_options import FilterOptions


@dataclass(frozen=True)
class Threshold:
    """A limit on a distance: absolute, or a multiple of its floor.

    Attributes:
        value: the limit or the factor.
        of_floor: whether `value` is a factor.
    """

    value: float
    of_floor: bool

    @classmethod
    def parse(cls, text: str | float, parameter: str) -> Threshold:
        """Read `12.5` or `3x`.

        Raises:
            InputError: neither, or not above 0.
        """
        words = str(text).strip().lower()
        try:
            value = float(words.removesuffix("x"))
        except ValueError:
            value = float("nan")
        if not (value > 0 and np.isfinite(value)):
            allowed = "a number above 0, or a multiple of the floor such as 3x"
            raise InputError(f"`{parameter}`", value=text, allowed=allowed)
        return cls(value, words.endswith("x"))

    def limit(self, floor: float) -> float:
        """Return the absolute limit."""
        return self.value * floor if self.of_floor else self.value

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.of_floor else f"{self.value:g}"


@dataclass(frozen=True)
class Criteria:
    """What images and classes must pass; nothing by default.

    Attributes:
        images: the checks of single images.
        max_fid: limit on the Fréchet distance of a class's accepted pool; None lets all pass.
        max_kid: limit on its kernel distance; None lets all pass.
    """

    images: FilterOptions = field(default_factory=lambda: FilterOptions(checks=()))
    max_fid: Threshold | None = None
    max_kid: Threshold | None = None

    @classmethod
    def asked(cls, images: FilterOptions, max_fid: str | float | None, max_kid: str | float | None) -> Criteria:
        """Read what a user asks for.

        Raises:
            InputError: a limit that is none.
        """
        return cls(
            images,
            Threshold.parse(max_fid, "max_fid") if max_fid is not None else None,
            Threshold.parse(max_kid, "max_kid") if max_kid is not None else None,
        )

    @property
    def any(self) -> bool:
        """Whether anything must be passed, so that classes are calibrated."""
        return bool(self.images.checks or self.max_fid or self.max_kid)

    def to_json(self) -> dict[str, Any]:
        """Return the criteria as plain values."""
        return {
            **self.images.to_json(),
            "max_fid": str(self.max_fid) if self.max_fid else None,
            "max_kid": str(self.max_kid) if self.max_kid else None,
        }
