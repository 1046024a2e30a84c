"""A fit as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rebalance.reporting.tables import table

if TYPE_CHECKING:
    from rebalance.training import FitResult


def fit_text(result: FitResult) -> str:
    """Return what was fitted, and each target's source dependence, "-" for a stage that translates no sources."""
    header = ["model", "steps", "target", "source dependence"]
    return "\n".join([table(header, list(_rows(result))), "", f"run  {result.run}"])


def _rows(result: FitResult) -> Iterator[list[object]]:
    for name, steps in result.steps.items():
        targets = result.source_dependence.get(name, {})
        if not targets:
            yield [name, steps, "-", "-"]
        for target, ratio in targets.items():
            yield [name, steps, target, round(ratio, 3)]
