"""What the lines of `results/long_tail.jsonl` say: a table of the arms, curves, and how far the gap is closed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.measures.spreads import Spread, spread
from rebalance.trials import parse_arms
from rebalance.trials.arms import BEST, FILTERED, FULL, Arm, multiple_text
from rebalance.trials.figures import SCALARS, figures_of
from rebalance.trials.results import plain_values

FULL_DATA, DEEP_SMOTE = "all real data", "DeepSMOTE"
AUGMENTED = "+augment"
CHOSEN = "chosen"
"""Stands for each draw's own choice on val."""

LEAST_CLOSURE, LEAST_POOR_GAIN, LARGEST_LOSS, LARGEST_REGRET = 1 / 3, 0.02, 0.01, 0.005
"""What is to be shown: see `Report.met`."""

_BALANCED = "balanced_accuracy"


@dataclass(frozen=True)
class Report:
    """What the lines of one data set say, draws being the sample.

    The cheap arm that val chose in a draw counts as `best` too, and arms on top of it as `best+...`, so that draws that
    chose different ones can be compared.
    """

    lines: Sequence[dict[str, Any]]

    @functools.cached_property
    def draws(self) -> dict[int, dict[str, Any]]:
        """What was chosen in each draw."""
        return {line["draw"]: line for line in self.lines if "tuned" in line}

    @functools.cached_property
    def _figures(self) -> dict[str, dict[int, dict[str, float]]]:
        """Every figure by arm and draw, as the mean over seeds: on test, recalls by label among them, and on val."""
        grouped: dict[tuple[str, int], list[dict[str, float]]] = {}
        for line in self.lines:
            if "arm" in line:
                for name in _names_of(line["arm"], self.draws[line["draw"]]["best"]):
                    grouped.setdefault((name, line["draw"]), []).append(self._figures_of(line))
        found: dict[str, dict[int, dict[str, float]]] = {}
        for (arm, draw), trials in grouped.items():
            found.setdefault(arm, {})[draw] = {key: float(np.mean([t[key] for t in trials])) for key in trials[0]}
        return found

    def _figures_of(self, line: dict[str, Any]) -> dict[str, float]:
        of_trial = figures_of(np.array(line["test"]), self.draws[line["draw"]]["poor"])
        values = {name: getattr(of_trial, name) for name in SCALARS}
        values |= {f"recall/{label}": recall for label, recall in enumerate(of_trial.recalls)}
        val = np.array(line.get("val", []))
        return values | ({"val": figures_of(val, ()).balanced_accuracy} if val.any() else {})

    def values(self, arm: str, figure: str) -> list[float]:
        """A figure of an arm, draw by draw."""
        if arm == CHOSEN:
            return [self._figures[line["tuned"]][draw][figure] for draw, line in sorted(self.draws.items())]
        return [of_draw[figure] for _, of_draw in sorted(self._figures[arm].items())]

    def _mean(self, arm: str, figure: str = _BALANCED) -> float:
        return float(np.mean(self.values(arm, figure)))

    @functools.cached_property
    def arms(self) -> list[str]:
        """Arms that every draw has, those that are the same as one on top of `best` in all of them left out."""
        bests = {line["best"] for line in self.draws.values()}
        always = {arm for arm in self._figures if len(bests) == 1 and len(_names_of(arm, next(iter(bests)))) > 1}
        everywhere = [arm for arm, by_draw in self._figures.items() if by_draw.keys() == self.draws.keys()]
        return [arm for arm in everywhere if arm not in always - bests and arm != BEST]

    def _parsed(self) -> Iterator[tuple[str, Arm]]:
        for arm in self.arms:
            if not arm.startswith((FULL_DATA, DEEP_SMOTE)):
                yield arm, parse_arms([arm], ())[0]

    @functools.cached_property
    def baseline(self) -> str:
        """The cheap arm with the best mean balanced accuracy on test."""
        return max((name for name, arm in self._parsed() if arm.cheap), key=self._mean)

    @property
    def full_data(self) -> str:
        """All real data, augmented if the baseline is, so that the gap between them is one of data alone."""
        return FULL_DATA + (AUGMENTED if parse_arms([self.baseline], ())[0].augment else "")

    @functools.cached_property
    def pooled(self) -> str:
        """The best on the val images of all draws together: `best`, or one amount on top of it."""
        amounts = [name for name, _ in self.curve]
        return max([BEST, *amounts], key=lambda arm: self._mean(arm, "val"))

    @functools.cached_property
    def curve(self) -> list[tuple[str, Arm]]:
        """The arms on top of `best` with filtered images, late ones left out, fewest first."""
        found = [
            (name, arm)
            for name, arm in self._parsed()
            if arm.remedy == BEST and arm.synthetic == FILTERED and not arm.late
        ]
        return sorted(found, key=lambda pair: (pair[1].share or 1.0, pair[1].multiple or FULL))

    def difference(self, arm: str, figure: str) -> Spread:
        """The paired difference to the baseline over draws."""
        return spread(np.subtract(self.values(arm, figure), self.values(self.baseline, figure)).tolist())

    def gap_closure(self, arm: str = CHOSEN) -> Spread:
        """The share of the gap between the baseline and all real data that an arm closes."""
        own, base, full = (np.array(self.values(name, _BALANCED)) for name in (arm, self.baseline, self.full_data))
        gap = full - base
        return spread(np.divide(own - base, gap, out=np.full_like(gap, np.nan), where=gap > 0).tolist())

    @functools.cached_property
    def recalls(self) -> dict[str, Spread]:
        """What each class's recall gains by the choice."""
        return {
            name: self.difference(CHOSEN, name)
            for name in self._figures[self.baseline][min(self.draws)]
            if name.startswith("recall/")
        }

    @property
    def regret(self) -> float:
        """By how much the best mean on the curve of filtered images is above that of the choices, on test."""
        return max(self._mean(arm) for arm in (BEST, *(name for name, _ in self.curve))) - self._mean(CHOSEN)

    def met(self) -> dict[str, bool]:
        """Return what is to be shown, and whether it is."""
        closed = self.gap_closure()
        return {
            "gap_closure": closed.mean >= LEAST_CLOSURE and closed.low is not None and closed.low > 0,
            "poor_recall_gain": self.difference(CHOSEN, "poor_recall").mean >= LEAST_POOR_GAIN,
            "no_class_lost": all(gain.high is not None and gain.high > -LARGEST_LOSS for gain in self.recalls.values()),
            "tuned_near_best": self.regret <= LARGEST_REGRET,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the main figures as plain values."""
        closed, pooled = self.gap_closure(), self.gap_closure(self.pooled)
        found = {
            "gap_closure": closed.mean,
            "gap_closure_interval": [closed.low, closed.high],
            "draws": len(self.draws),
            "baseline": self.baseline,
            "full_data": self.full_data,
            "chosen": [line["tuned"] for _, line in sorted(self.draws.items())],
            "pooled": {"arm": self.pooled, "gap_closure": pooled.mean, "interval": [pooled.low, pooled.high]},
            "gain": vars(self.difference(CHOSEN, _BALANCED)),
            "poor_recall_gain": vars(self.difference(CHOSEN, "poor_recall")),
            "recall_gains": {name: vars(gain) for name, gain in self.recalls.items()},
            "regret": self.regret,
            "met": self.met(),
            "arms": {arm: vars(spread(self.values(arm, _BALANCED))) for arm in self.arms},
            "gains": {arm: vars(self.difference(arm, _BALANCED)) for arm in self.arms},
        }
        return plain_values(found)

    def text(self) -> str:
        """Return Markdown tables of the arms, the best first, the curves and the classes, and the gap closure."""
        closed, pooled = (_share(self.gap_closure(arm)) for arm in (CHOSEN, self.pooled))
        chosen = ", ".join(line["tuned"] for _, line in sorted(self.draws.items()))
        met = ", ".join(f"{name}: {'yes' if met else 'no'}" for name, met in self.met().items())
        lines = [
            *self._arm_table(), "", *self._curve_table(), "", *self._class_table(), "",
            f"gap closure {closed}, {len(self.draws)} draws, against {self.baseline} and {self.full_data}",
            f"chosen: {chosen}; the best on the curve is {100 * self.regret:.1f} points above the choices",
            f"best on val of all draws together: {self.pooled}, gap closure {pooled}",
            f"met: {met}",
        ]  # fmt: skip
        return "\n".join(lines)

    def _arm_table(self) -> Iterator[str]:
        yield "| arm | balanced accuracy | vs * | macro F1 | G-mean | macro G-mean | poor recall | vs * |"
        yield "|---|---|---|---|---|---|---|---|"
        for arm in sorted([CHOSEN, *self.arms], key=lambda arm: -self._mean(arm)):
            names = ("macro_f1", "geometric_mean", "macro_geometric_mean", "poor_recall")
            cells = [_percent(spread(self.values(arm, _BALANCED))), _signed(self.difference(arm, _BALANCED))]
            cells += [_percent(spread(self.values(arm, name))) for name in names]
            cells.append(_signed(self.difference(arm, "poor_recall")))
            yield f"| {arm}{' *' if arm == self.baseline else ''} | {' | '.join(cells)} |"

    def _curve_table(self) -> Iterator[str]:
        """Balanced accuracy with synthetic images, by their number, as the paired difference to the remedy alone."""
        yield "| on top of | synthetic images | times the real ones | balanced accuracy vs the remedy alone |"
        yield "|---|---|---|---|"
        rows = []
        for name, arm in self._parsed():
            remedy = BEST if arm.remedy == BEST else Arm(arm.remedy, arm.augment).name
            if arm.synthetic and remedy in self._figures:
                gain = spread(np.subtract(self.values(name, _BALANCED), self.values(remedy, _BALANCED)).tolist())
                kind = replace(arm, multiple=None).name.removeprefix(f"{remedy}+")
                rows.append((remedy, kind, arm.multiple or FULL, _signed(gain)))
        for remedy, kind, multiple, gain in sorted(rows):
            yield f"| {remedy} | {kind} | {multiple_text(multiple)} | {gain} |"

    def _class_table(self) -> Iterator[str]:
        """Recall by class."""
        yield "| class | best cheap | chosen | difference | all real data |"
        yield "|---|---|---|---|---|"
        for name, gain in self.recalls.items():
            cells = [_percent(spread(self.values(arm, name))) for arm in (self.baseline, CHOSEN, self.full_data)]
            yield f"| {name.partition('/')[2]} | {cells[0]} | {cells[1]} | {_signed(gain)} | {cells[2]} |"


def _names_of(arm: str, best: str) -> list[str]:
    """Return an arm's name, and what it is called where it is, or is on top of, a draw's `best`."""
    if arm == best:
        return [arm, BEST]
    rest = arm.removeprefix(f"{best}+")
    on_top = rest != arm and rest.partition("+")[0] != AUGMENTED.removeprefix("+")
    return [arm, f"{BEST}+{rest}"] if on_top else [arm]


def _percent(found: Spread) -> str:
    return f"{100 * found.mean:.1f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.1f}")


def _signed(found: Spread) -> str:
    return f"{100 * found.mean:+.1f}" + (
        "" if found.low is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )


def _share(found: Spread) -> str:
    return f"{found.mean:.2f}" + ("" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]")


def read_lines(results: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the lines by data set and draw; of one measured again, whose first line says what it chose, the last."""
    latest: dict[tuple[str, int], list[dict[str, Any]]] = {}
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    for line in map(json.loads, lines):
        of_draw = latest.setdefault((line["data_set"], line["draw"]), [])
        if "tuned" in line:
            of_draw.clear()
        of_draw.append(line)
    return latest


def read_reports(results: Path) -> dict[str, Report]:
    """Return the report of each data set.

    Raises:
        SystemExit: draws of one data set have been measured in different ways.
    """
    latest = read_lines(results)
    settings: dict[str, Any] = {}
    for (name, draw), of_draw in latest.items():
        if settings.setdefault(name, of_draw[0].get("settings")) != of_draw[0].get("settings"):
            raise SystemExit(f"draw {draw} of {name} has other settings than those before it: measure it again")
    names = dict.fromkeys(name for name, _ in latest)
    return {name: Report([line for (n, _), of in latest.items() if n == name for line in of]) for name in names}
