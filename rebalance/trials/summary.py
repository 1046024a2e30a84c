"""What the trials of a study say together: arms against the remedies without synthetic images, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rebalance.measures.spreads import spread
from rebalance.planning.tuned import Tuned
from rebalance.trials.arms import BEST, FILTERED, SAFE, SAFE_SHARE, Arm
from rebalance.trials.figures import SCALARS, Figures, figures_of
from rebalance.trials.material import Material
from rebalance.trials.records import TrialRecord
from rebalance.trials.results import ArmResult

Trials = Mapping[Arm, Sequence[TrialRecord]]
"""Of every arm, one trial a seed, in the order of the seeds."""


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
    """Return True for a cheap arm with filtered images on top, one of the amounts to choose from."""
    same = arm.remedy == BEST or (arm.remedy, arm.augment) == (below.remedy, below.augment)
    return same and arm.synthetic == FILTERED and not arm.late


@dataclass(frozen=True)
class Summary:
    """Turns trials into results.

    Attributes:
        material: the images.
        trials: the finished trials of each arm.
        seeds: choices are made over so many, among the arms that have them.
    """

    material: Material
    trials: Trials
    seeds: int

    @property
    def _compared(self) -> list[Arm]:
        return [arm for arm, records in self.trials.items() if len(records) >= self.seeds]

    def best_on_val(self) -> Arm | None:
        """Return `SAFE`, unless another cheap arm is clearly better on val; without `SAFE`, the best on val."""
        undecided = self._undecided(self._cheap())
        return SAFE if SAFE in undecided else max(undecided, key=self._on_val, default=None)

    def baseline(self) -> Arm | None:
        """Return the cheap arm with the best mean on test, the hardest to beat; None without cheap arms."""

        def on_test(arm: Arm) -> float:
            return float(np.mean([of_seed.balanced_accuracy for of_seed in self._of(arm)[: self.seeds]]))

        return max(self._cheap(), key=on_test, default=None)

    def _cheap(self) -> list[Arm]:
        """Return the cheap arms with enough seeds, by name, so that every call finds the same first one."""
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
        """Return the standard error of an arm's balanced accuracy on val, from few images and from few seeds.

        A class's recall has the error of a share, with half an image added to hits and to misses, so that one image of
        a class that is right does not count as certain. Where every seed has val images of its own, the spread over
        seeds counts them a second time.
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
        """Return what arms are ordered by: balanced accuracy on val, and between equal ones the smaller loss."""
        losses = [of_seed.confusion.val_loss for arm in arms for of_seed in self.trials[arm][: self.seeds]]
        return round(float(np.mean([self.val(arm) for arm in arms])), 9), -float(np.mean(losses))

    def val(self, arm: Arm) -> list[float]:
        """Return the balanced accuracy on val, by the seeds that choices are made over."""
        return self._val(arm)[: self.seeds]

    def _val(self, arm: Arm) -> list[float]:
        poor = self.material.poor
        return [figures_of(of_seed.confusion.val, poor).balanced_accuracy for of_seed in self.trials[arm]]

    def _of(self, arm: Arm) -> list[Figures]:
        return [figures_of(of_seed.confusion.test, self.material.poor) for of_seed in self.trials[arm]]

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
        """Choose, on val alone, among the cheap arm `best` and arms with filtered images on top of it."""
        if best is None:
            return None
        arms = [arm for arm in self._compared if arm == best or _builds_on(arm, best)]
        if arms == [best]:
            return None
        arms.sort(key=lambda arm: (int(self.trials[arm][0].amounts.synthetic.sum()), arm.name))
        undecided = self._undecided(arms)
        arm = self._amount(arms, undecided, best)
        synthetic, shares = self._amounts(arm)
        n_real = {name: int(self.material.n_real[self.material.classes.index(name)]) for name in synthetic}
        return Tuned(
            arm=arm.name,
            undecided=tuple(tied.name for tied in undecided),
            balance={name: n_real[name] + n for name, n in synthetic.items()},
            synthetic=synthetic,
            shares=shares,
            n_real=n_real,
            seeds=self.seeds,
            val=spread(self.val(arm)),
            val_gain=spread(np.subtract(self.val(arm), self.val(best)).tolist()),
        )

    def _amount(self, arms: Sequence[Arm], undecided: Sequence[Arm], best: Arm) -> Arm:
        """Choose among a cheap arm and arms on top of it.

        Among the arms tied with the best on val: one with `SAFE_SHARE`, if the arms with that share are together no
        worse on val than the cheap arm; else the cheap arm; if neither is tied, the best on val. The smaller loss
        decides between equal ones.
        """
        safe = [arm for arm in arms if arm.share == SAFE_SHARE]
        if best in undecided and (not safe or self._on_val(*safe) < self._on_val(best)):
            return best
        return max([arm for arm in safe if arm in undecided] or undecided, key=self._on_val)

    def short_of_seeds(self) -> tuple[str, ...]:
        """Return a note on arms that have too few seeds to be among the choices; () without any."""
        short = [f"{arm.name} ({len(of)})" for arm, of in self.trials.items() if len(of) < self.seeds]
        return (f"fewer than {self.seeds} seeds, so not among the choices: {', '.join(short)}",) if short else ()
