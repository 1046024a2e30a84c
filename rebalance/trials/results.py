"""What the trials of a study say together: arms against the cheap remedies, and the balance to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.trials.amounts import Amounts
from rebalance.trials.arms import FILTERED, Arm
from rebalance.trials.classifier import Confusion
from rebalance.trials.figures import SCALARS, Figures, Spread, figures, spread
from rebalance.trials.material import Material

Trials = Mapping[Arm, Sequence[Confusion]]
"""Of every arm, one confusion a seed, in the order of the seeds."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over all seeds.

    Attributes:
        name: the arm.
        cheap: whether it does without synthetic images.
        synthetic: synthetic images of each class that has some.
        shares: the share of each such class's draws that they get.
        val: balanced accuracy on val.
        figures: each figure of `SCALARS` on test.
        recalls: recall of each class on test.
        differences: each figure's paired difference to the baseline's.
        recall_differences: each class's.
        seconds: mean time of a trial.
    """

    name: str
    cheap: bool
    synthetic: dict[str, int]
    shares: dict[str, float]
    val: Spread
    figures: dict[str, Spread]
    recalls: dict[str, Spread]
    differences: dict[str, Spread]
    recall_differences: dict[str, Spread]
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The balance with the best balanced accuracy on val.

    Attributes:
        arm: the arm.
        balance: final images of each class that gets synthetic ones; empty where none help.
        synthetic: how many of them are synthetic.
        shares: the share of the class's mass that they should get.
        n_real: real train images of these classes.
        val: its balanced accuracy on val.
    """

    arm: str
    balance: dict[str, int]
    synthetic: dict[str, int]
    shares: dict[str, float]
    n_real: dict[str, int]
    val: Spread


@dataclass(frozen=True)
class Downstream:
    """A study of what synthetic images do for a classifier.

    Attributes:
        results: folder with `downstream.json`, `chart.png`, `tuned.json` and the trials.
        classes: the classes, in label order.
        poor: those that have synthetic images.
        seeds: number of seeds.
        best: the cheap arm with the best balanced accuracy on val, which `best` stands for; "" without cheap arms.
        baseline: the cheap arm with the best balanced accuracy on test, which arms are compared with; "" without.
        arms: every arm.
        tuned: the balance to choose; None where no arm can tell.
        chosen: how classifiers are computed on this machine.
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
    chosen: str
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the study as plain values; what is not known is None."""
        return _plain({**asdict(self), "results": str(self.results)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True)
class Summary:
    """Turns trials into results.

    Attributes:
        material: the images.
        amounts: how many synthetic ones each arm draws from.
        trials: what came of it.
    """

    material: Material
    amounts: Mapping[Arm, Amounts]
    trials: Trials

    def best_on_val(self) -> Arm | None:
        """The cheap arm with the best mean balanced accuracy on val; None without."""
        return self._best([arm for arm in self.trials if arm.cheap], self.val)

    def baseline(self) -> Arm | None:
        """The cheap arm with the best mean on test: the hardest to beat; None without."""
        return self._best([arm for arm in self.trials if arm.cheap], lambda arm: self._test(arm, "balanced_accuracy"))

    def _best(self, arms: Sequence[Arm], values: Any) -> Arm | None:
        return max(arms, key=lambda arm: np.mean(values(arm)), default=None)

    def val(self, arm: Arm) -> list[float]:
        """Balanced accuracy on val, by seed."""
        return [figures(trial.val, self.material.poor).balanced_accuracy for trial in self.trials[arm]]

    def _of(self, arm: Arm) -> list[Figures]:
        return [figures(trial.test, self.material.poor) for trial in self.trials[arm]]

    def _test(self, arm: Arm, name: str) -> list[float]:
        return [getattr(of_seed, name) for of_seed in self._of(arm)]

    def arm(self, arm: Arm, baseline: Arm | None) -> ArmResult:
        """Summarise an arm, against a baseline where there is one."""
        own, other = self._of(arm), self._of(baseline) if baseline else []
        recalls = np.array([of_seed.recalls for of_seed in own])
        gains = recalls - np.array([of_seed.recalls for of_seed in other]) if other else None
        synthetic, shares = self._amounts(arm)
        classes = self.material.classes
        return ArmResult(
            name=arm.name,
            cheap=arm.cheap,
            synthetic=synthetic,
            shares=shares,
            val=spread(self.val(arm)),
            figures={name: spread([getattr(f, name) for f in own]) for name in SCALARS},
            recalls={name: spread(recalls[:, label]) for label, name in enumerate(classes)},
            differences={
                name: spread([getattr(a, name) - getattr(b, name) for a, b in zip(own, other, strict=True)])
                for name in SCALARS
                if other
            },
            recall_differences=(
                {name: spread(gains[:, label]) for label, name in enumerate(classes)} if gains is not None else {}
            ),
            seconds=round(float(np.mean([trial.seconds for trial in self.trials[arm]])), 1),
        )

    def _amounts(self, arm: Arm) -> tuple[dict[str, int], dict[str, float]]:
        amounts, classes = self.amounts[arm], self.material.classes
        used = [label for label, n in enumerate(amounts.synthetic) if n]
        return (
            {classes[label]: int(amounts.synthetic[label]) for label in used},
            {classes[label]: round(float(amounts.shares[label]), 6) for label in used},
        )

    def tuned(self, best: Arm | None) -> Tuned | None:
        """Choose, on val alone, among the best cheap arm and what filtered images make of it; ties go to fewer."""
        if best is None:
            return None
        arms = [arm for arm in self.trials if arm == best or self._builds_on(arm, best)]
        if arms == [best]:
            return None
        arms.sort(key=lambda arm: int(self.amounts[arm].synthetic.sum()))
        chosen = max(arms, key=lambda arm: np.mean(self.val(arm)))
        synthetic, shares = self._amounts(chosen)
        n_real = {name: int(self.material.n_real[self.material.classes.index(name)]) for name in synthetic}
        return Tuned(
            arm=chosen.name,
            balance={name: n_real[name] + n for name, n in synthetic.items()},
            synthetic=synthetic,
            shares=shares,
            n_real=n_real,
            val=spread(self.val(chosen)),
        )

    @staticmethod
    def _builds_on(arm: Arm, best: Arm) -> bool:
        same = (arm.remedy, arm.augment) == (best.remedy, best.augment)
        return same and arm.synthetic == FILTERED and not arm.late
