"""What the trials of a study say together: arms against the cheap remedies, and the balance to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.trials.arms import BEST, FILTERED, SAFE, SAFE_SHARE, Arm
from rebalance.trials.figures import SCALARS, Figures, Spread, figures, spread
from rebalance.trials.material import Material
from rebalance.trials.trial_files import Outcome

Trials = Mapping[Arm, Sequence[Outcome]]
"""Of every arm, one outcome a seed, in the order of the seeds."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over all its seeds.

    Attributes:
        name: the arm.
        cheap: whether it does without synthetic images.
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
class Tuned:
    """The balance that val chooses.

    Attributes:
        arm: the arm.
        undecided: the arms that val cannot tell from the best on it: their difference is within its standard error.
        balance: final images of each class that gets synthetic ones; empty where none are chosen.
        synthetic: how many of them are synthetic.
        shares: the share of the class's mass that they should get.
        n_real: real train images of these classes.
        seeds: seeds that it was chosen over.
        val: its balanced accuracy on val.
        val_gain: its paired difference to the cheap arm that val chooses.
    """

    arm: str
    undecided: tuple[str, ...]
    balance: dict[str, int]
    synthetic: dict[str, int]
    shares: dict[str, float]
    n_real: dict[str, int]
    seeds: int
    val: Spread
    val_gain: Spread


@dataclass(frozen=True)
class Downstream:
    """A study of what synthetic images do for a classifier.

    Attributes:
        results: folder with `downstream.json`, `chart.png`, `tuned.json` and the trials.
        classes: the classes, in label order.
        poor: those that have synthetic images.
        seeds: seeds that choices are made over, `best`, `baseline` and `tuned`, among the arms that have as many.
        best: the cheap arm that val chooses, which `best` stands for; "" without cheap arms.
        baseline: the cheap arm with the best balanced accuracy on test, which arms are compared with; "" without.
        arms: every arm that the folder has trials of, those asked for first.
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
        return plain_values({**asdict(self), "results": str(self.results)})


def plain_values(value: Any) -> Any:
    """Return mappings, lists and tuples as JSON has them, None for a number that is not finite."""
    if isinstance(value, dict):
        return {key: plain_values(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(element) for element in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def seeds_to_choose_over(n_seeds: Mapping[Arm, int]) -> int:
    """Return over how many seeds arms are compared, when some have more than others.

    The most for which there is an amount to choose: a cheap arm, and one with filtered images on top of it; else the
    most for which there are two cheap arms, or one. So a choice is never made anew over fewer seeds.

    Args:
        n_seeds: seeds of each arm; one on top of `BEST` is on top of any cheap arm.
    """
    descending = sorted(set(n_seeds.values()), reverse=True)
    with_so_many = {n: [arm for arm in n_seeds if n_seeds[arm] >= n] for n in descending}
    cheap = {n: [arm for arm in arms if arm.cheap] for n, arms in with_so_many.items()}
    for n, arms in with_so_many.items():
        if any(_builds_on(arm, below) for arm in arms for below in cheap[n]):
            return n
    enough = [n for least in (2, 1) for n in descending if len(cheap[n]) >= least]
    return enough[0] if enough else max(descending, default=0)


def _builds_on(arm: Arm, below: Arm) -> bool:
    """Whether an arm is a cheap one with filtered images, and so one of the amounts to choose from."""
    same = arm.remedy == BEST or (arm.remedy, arm.augment) == (below.remedy, below.augment)
    return same and arm.synthetic == FILTERED and not arm.late


@dataclass(frozen=True)
class Summary:
    """Turns trials into results.

    Attributes:
        material: the images.
        trials: what came of each arm.
        seeds: choices are made over so many, among the arms that have them.
    """

    material: Material
    trials: Trials
    seeds: int

    @property
    def _compared(self) -> list[Arm]:
        return [arm for arm, outcomes in self.trials.items() if len(outcomes) >= self.seeds]

    def best_on_val(self) -> Arm | None:
        """`SAFE`, unless val can tell that another cheap arm is better; without it, the best on val."""
        undecided = self._undecided(self._cheap())
        return SAFE if SAFE in undecided else max(undecided, key=self._on_val, default=None)

    def baseline(self) -> Arm | None:
        """The cheap arm with the best mean on test: the hardest to beat; None without."""

        def on_test(arm: Arm) -> float:
            return float(np.mean([of_seed.balanced_accuracy for of_seed in self._of(arm)[: self.seeds]]))

        return max(self._cheap(), key=on_test, default=None)

    def _cheap(self) -> list[Arm]:
        """Those that can be chosen, by name, so that the same one is in every call."""
        return sorted((arm for arm in self._compared if arm.cheap), key=lambda arm: arm.name)

    def _undecided(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return the arms whose difference to the best on val is within its standard error, in the same order.

        After Breiman et al. (1984); the two arms count as independent, because trials do not keep single images.
        """
        best = max(arms, key=self._on_val, default=None)
        if best is None:
            return []
        accuracy, error = self._on_val(best)[0], self.standard_error(best)
        return [arm for arm in arms if accuracy - self._on_val(arm)[0] <= np.hypot(error, self.standard_error(arm))]

    def standard_error(self, arm: Arm) -> float:
        """The standard error of an arm's balanced accuracy on val, of few images and of few seeds.

        A class's part is that of a share of its images, with half an image more on either side, so that a class of one
        image that is right is not taken for known. Where every seed has val images of its own, the spread over seeds
        counts them a second time.
        """
        n = self._n_val
        confusion = np.sum([of_seed.confusion.val for of_seed in self.trials[arm][: self.seeds]], axis=0)
        seen = n > 0
        recalls = np.diag(confusion)[seen] / confusion.sum(1)[seen]
        smoothed = (recalls * n[seen] + 0.5) / (n[seen] + 1)
        of_images = np.sqrt((smoothed * (1 - smoothed) / n[seen]).sum()) / seen.sum()
        of_seeds = np.std(self.val(arm), ddof=1) / np.sqrt(self.seeds) if self.seeds > 1 else 0.0
        return float(np.hypot(of_images, of_seeds))

    @cached_property
    def _n_val(self) -> np.ndarray:
        return self.material.n_val(self.seeds)

    def _on_val(self, *arms: Arm) -> tuple[float, float]:
        """What arms are ordered by: balanced accuracy, which few images leave equal, and then how sure they are."""
        losses = [of_seed.confusion.val_loss for arm in arms for of_seed in self.trials[arm][: self.seeds]]
        return round(float(np.mean([self.val(arm) for arm in arms])), 9), -float(np.mean(losses))

    def val(self, arm: Arm) -> list[float]:
        """Balanced accuracy on val, by the seeds that choices are made over."""
        return self._val(arm)[: self.seeds]

    def _val(self, arm: Arm) -> list[float]:
        poor = self.material.poor
        return [figures(of_seed.confusion.val, poor).balanced_accuracy for of_seed in self.trials[arm]]

    def _of(self, arm: Arm) -> list[Figures]:
        return [figures(of_seed.confusion.test, self.material.poor) for of_seed in self.trials[arm]]

    def arm(self, arm: Arm, baseline: Arm | None) -> ArmResult:
        """Summarise an arm, against a baseline where there is one."""
        own, recalls = self._of(arm), np.array([of_seed.recalls for of_seed in self._of(arm)])
        pairs = list(zip(own, self._of(baseline) if baseline else [], strict=False))
        gains = np.array([np.subtract(a.recalls, b.recalls) for a, b in pairs])
        synthetic, shares = self._amounts(arm)
        classes = self.material.classes
        return ArmResult(
            name=arm.name,
            cheap=arm.cheap,
            seeds=len(own),
            synthetic=synthetic,
            shares=shares,
            val=spread(self._val(arm)),
            figures={name: spread([getattr(f, name) for f in own]) for name in SCALARS},
            recalls={name: spread(recalls[:, label]) for label, name in enumerate(classes)},
            differences={
                name: spread([getattr(a, name) - getattr(b, name) for a, b in pairs]) for name in SCALARS if pairs
            },
            recall_differences={name: spread(gains[:, label]) for label, name in enumerate(classes) if pairs},
            seconds=round(float(np.mean([of_seed.confusion.seconds for of_seed in self.trials[arm]])), 1),
        )

    def _amounts(self, arm: Arm) -> tuple[dict[str, int], dict[str, float]]:
        amounts, classes = self.trials[arm][0].amounts, self.material.classes
        used = [label for label, n in enumerate(amounts.synthetic) if n]
        return (
            {classes[label]: int(amounts.synthetic[label]) for label in used},
            {classes[label]: round(float(amounts.shares[label]), 6) for label in used},
        )

    def tuned(self, best: Arm | None) -> Tuned | None:
        """Choose, on val alone, among the cheap arm `best` and what filtered images make of it."""
        if best is None:
            return None
        arms = [arm for arm in self._compared if arm == best or _builds_on(arm, best)]
        if arms == [best]:
            return None
        arms.sort(key=lambda arm: (int(self.trials[arm][0].amounts.synthetic.sum()), arm.name))
        undecided = self._undecided(arms)
        chosen = self._amount(arms, undecided, best)
        synthetic, shares = self._amounts(chosen)
        n_real = {name: int(self.material.n_real[self.material.classes.index(name)]) for name in synthetic}
        return Tuned(
            arm=chosen.name,
            undecided=tuple(arm.name for arm in undecided),
            balance={name: n_real[name] + n for name, n in synthetic.items()},
            synthetic=synthetic,
            shares=shares,
            n_real=n_real,
            seeds=self.seeds,
            val=spread(self.val(chosen)),
            val_gain=spread(np.subtract(self.val(chosen), self.val(best)).tolist()),
        )

    def _amount(self, arms: Sequence[Arm], undecided: Sequence[Arm], best: Arm) -> Arm:
        """Choose among arms on top of a cheap one, and that.

        Of those that val cannot tell from its best it is one with `SAFE_SHARE` if these are together no worse on val
        than the cheap one, else that; without either, the best on val. The smaller loss decides between equal ones.
        """
        safe = [arm for arm in arms if arm.share == SAFE_SHARE]
        if best in undecided and (not safe or self._on_val(*safe) < self._on_val(best)):
            return best
        return max([arm for arm in safe if arm in undecided] or undecided, key=self._on_val)

    def short_of_seeds(self) -> tuple[str, ...]:
        """Say which arms have too few seeds to be among the choices."""
        short = [f"{arm.name} ({len(of)})" for arm, of in self.trials.items() if len(of) < self.seeds]
        return (f"fewer than {self.seeds} seeds, so not among the choices: {', '.join(short)}",) if short else ()
