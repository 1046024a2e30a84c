"""A figure over several seeds: mean, deviation, and an interval of the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rebalance.measures.estimators import student_quantile

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: its mean.
        deviation: its standard deviation; None of one seed.
        low: lower end of the 95% interval of the mean (Student's t); None of one seed.
        high: upper end.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the figure as JSON has it: None for a number that is not finite."""
        values: dict[str, float | None] = asdict(self)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, float | None]) -> Spread:
        """Read what `to_json` returns."""
        mean = values["mean"]
        return cls(math.nan if mean is None else mean, values["deviation"], values["low"], values["high"])


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return mean, deviation and 95% interval of a figure, or of paired differences, over seeds."""
    figures, n = np.asarray(values, np.float64), len(values)
    mean = float(figures.mean())
    if n < 2 or not np.isfinite(mean):
        return Spread(mean, None, None, None)
    deviation = float(figures.std(ddof=1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n)
    return Spread(mean, deviation, mean - half, mean + half)
