"""The result of a study: its arms over all seeds, and the balance to choose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance.measures.spreads import Spread
from rebalance.planning.tuned import Tuned

RESULT, CHART = "downstream.json", "chart.png"
"""Files of a study beside its records; the chart is drawn by `reporting`."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over all its seeds.

    Attributes:
        name: the arm.
        cheap: it does without synthetic images.
        seeds: number of its seeds.
        synthetic: synthetic images of each class that has some.
        shares: the share of each such class's draws that they get.
        val: balanced accuracy on val.
        figures: each figure of `SCALARS` on test.
        recalls: recall of each class on test.
        differences: each figure's paired difference to the baseline's, over the seeds that both have.
        recall_differences: each class's.
        seconds: mean time of a trial.
    """

    name: str
    cheap: bool
    seeds: int
    synthetic: dict[str, int]
    shares: dict[str, float]
    val: Spread
    figures: dict[str, Spread]
    recalls: dict[str, Spread]
    differences: dict[str, Spread]
    recall_differences: dict[str, Spread]
    seconds: float


@dataclass(frozen=True)
class Downstream:
    """A study of what synthetic images do for a classifier.

    Attributes:
        results: folder with `downstream.json`, `tuned.json` and the trials.
        classes: the classes, in label order.
        poor: those that have synthetic images.
        seeds: seeds that choices are made over, `best`, `baseline` and `tuned`, among the arms that have as many.
        best: the cheap arm (one without synthetic images) that val chooses, which `best` stands for; "" without one.
        baseline: the cheap arm with the best balanced accuracy on test, which arms are compared with; "" without one.
        arms: every arm that the folder has trials of, those asked for first.
        tuned: the balance to choose; None where no arm can tell.
        classifier: how classifiers are computed on this machine, in words.
        notes: what is missing.
        seconds: time taken now.
    """

    results: Path
    classes: tuple[str, ...]
    poor: tuple[str, ...]
    seeds: int
    best: str
    baseline: str
    arms: tuple[ArmResult, ...]
    tuned: Tuned | None
    classifier: str
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the study as plain values, None for a number that is not finite."""
        values: dict[str, Any] = plain_values({**asdict(self), "results": str(self.results)})
        return values


def plain_values(value: Any) -> Any:
    """Return mappings, lists and tuples as JSON has them, None for a number that is not finite."""
    if isinstance(value, dict):
        return {key: plain_values(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
