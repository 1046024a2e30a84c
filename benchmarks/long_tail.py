"""Do synthetic images help a classifier of a 100:1 long tail, and how much of the way to all real data do they go?

    python benchmarks/long_tail.py --work WORK --data-set fashion --draws 0,1,2,3,4
    python benchmarks/long_tail.py --report [--json]

A draw is a data set of its own: other train images in the counts of the protocol, all real test images, and val held
out from train. Each has its own fit, its output, a downstream study with every arm, DeepSMOTE in its place, and the
same classifier on all real train images. Everything resumes: stop it at any time, the same command goes on. A line for
each trial, with its confusion matrices on val and test, goes to `results/long_tail.jsonl`, one for each draw says what
was chosen; the report is made from them.

    gap closure   (the arm chosen on val - the arm without synthetic images with the best mean on test)
                  / (all real data - that arm), of balanced accuracy on test, draw by draw

Published figures for this protocol, of another classifier (ResNet-18) and another budget, so no comparison: SMOTE 70.6,
BAGAN 81.5, GAMO 83.0, DeepSMOTE 83.6 (Dablain et al., 2021; accuracy per class).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data_sets
import deep_smote
import numpy as np
import torch
from data_sets import fashion_mnist
from PIL import Image
from sklearn.datasets import load_digits

import rebalance
from rebalance import demo, files, images
from rebalance.config import load_recipe
from rebalance.devices import cpu_count
from rebalance.index import build_index, carve_validation
from rebalance.trials import Downstream, parse_arms
from rebalance.trials.amounts import amounts
from rebalance.trials.arms import Arm
from rebalance.trials.classifier import Trial, loop_options
from rebalance.trials.figures import SCALARS, Spread, figures, spread
from rebalance.trials.pools import Mixture, Pool, grayed
from rebalance.trials.study import STUDY, TRIALS
from rebalance.views import View

RESULTS = Path(__file__).parent / "results" / "long_tail.jsonl"
FULL, DEEP_SMOTE = "all real data", "DeepSMOTE"
_DEEP_ARM = "plain+augment+filtered+xfull"
_N_FINAL = 1000
_ENCODING = ("jpg", 95)  # as `generate` writes images


@dataclass(frozen=True)
class LongTail:
    """A protocol.

    Attributes:
        counts: train images of each class, by label.
        poor: labels of the classes that receive images.
        final: images that each of them has in the end, at most.
        recipe: the recipe.
        overrides: changes of it.
        everything: returns all real train images (n, H, W) uint8 and their labels (n,).
        write: writes a draw's data set into a folder.
    """

    counts: tuple[int, ...]
    poor: tuple[int, ...]
    final: int
    recipe: str
    overrides: tuple[str, ...]
    everything: Callable[[], tuple[np.ndarray, np.ndarray]]
    write: Callable[[Path, int], None]


def _write_fashion(folder: Path, draw: int) -> None:
    fashion_mnist.write_long_tail(folder, fashion_mnist.LONG_TAIL, 0, draw, None)


DIGIT_COUNTS = (130, 65, 33, 25, 17, 12, 7, 5, 4, 3)


def _write_digits(folder: Path, draw: int) -> None:
    """The same shape of tail, scaled to what digits there are."""
    digits, (train, test) = load_digits(), demo.split_digits()
    pixels, rng = (digits.images * 255 / 16).round().astype(np.uint8), np.random.default_rng(draw)
    for label, count in enumerate(DIGIT_COUNTS):
        fashion_mnist.write(folder / "train" / str(label), pixels, rng.permutation(train[label])[:count])
        fashion_mnist.write(folder / "test" / str(label), pixels, test[label])


LONG_TAILS = {
    "fashion": LongTail(
        fashion_mnist.LONG_TAIL, (6, 7, 8, 9), _N_FINAL, "fashion-cpu", ("training.steps=6000",),
        data_sets.DATA_SETS["fashion"].everything, _write_fashion,
    ),
    "digits": LongTail(
        DIGIT_COUNTS, (6, 7, 8, 9), 100, "digits-cpu", ("plan.n_sources=2",),
        data_sets.DATA_SETS["digits"].everything, _write_digits,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """One draw of a protocol, in its folder."""

    protocol: LongTail
    name: str
    number: int
    place: Path
    seeds: int

    @property
    def data(self) -> Path:
        """Folder of the data set."""
        return self.place / "data"

    def prepare(self) -> None:
        """Write the data set once."""
        done = self.data / ".written"
        if not done.is_file():
            self.protocol.write(self.data, self.number)
            done.touch()

    def fit_and_generate(self) -> float | None:
        """Fit and generate, or go on with it; return the minutes of the fit, None when it was resumed."""
        protocol, start = self.protocol, time.monotonic()
        wanted = {str(label): protocol.final for label in protocol.poor}
        fitted = rebalance.fit(
            self.data, self.place / "run", protocol.recipe, balance=wanted, overrides=protocol.overrides,
            seed=self.number, device="cpu", progress=True,
        )  # fmt: skip
        minutes = None if fitted.resumed else round((time.monotonic() - start) / 60, 1)
        rebalance.generate(self.place / "run", self.place / "shards", workers=cpu_count(), device="cpu", progress=True)
        return minutes

    def study(self, out: Path, results: Path, arms: Sequence[str] | None) -> Downstream:
        """Run the study of an output; with all arms, of the run that made it."""
        return rebalance.downstream(
            self.data, out, results=results, run=self.place / "run" if arms is None else None, arms=arms,
            recipe=self.protocol.recipe, overrides=[f"seed={self.number}"], seeds=self.seeds,
            square=self._recipe.data.square, device="cpu", progress=True,
        )  # fmt: skip

    @property
    def _recipe(self) -> Any:
        return load_recipe(self.protocol.recipe, self.protocol.overrides)

    @functools.cached_property
    def _view(self) -> View:
        data = self._recipe.data
        return View(data.size_px, data.square, _ENCODING)

    def _pool(self, pixels: Sequence[Image.Image], labels: np.ndarray) -> Pool:
        looked = np.stack([self._view.of_real(image) for image in pixels])
        return Pool.of_classes([looked[labels == label] for label in range(len(self.protocol.counts))])

    def deep_smote(self, steps: int) -> Path:
        """Fill every class up to the largest with DeepSMOTE's images, as its paper does, in class folders."""
        out = self.place / "deep-smote"
        if (out / ".written").is_file():
            return out
        options = self._recipe.data
        index = carve_validation(build_index(self.data), options.val_fraction, self.number)
        rows = np.concatenate([index.rows("train", name) for name in index.classes])
        pixels = np.stack([index.square(int(row), options) for row in rows])
        labels = np.array([index.label(name) for name in index.column("class")[rows]])
        networks = deep_smote.train(pixels, labels, steps, self.number, self.place / "deep-smote-training")
        counts = np.bincount(labels)
        final = {label: int(counts.max()) for label in np.flatnonzero(counts < counts.max()).tolist()}
        for label, made in deep_smote.oversample(*networks, pixels, labels, final, self.number).items():
            for number, image in enumerate(made):
                path = out / str(label) / f"{number:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(images.encode(image, *_ENCODING))
        (out / ".written").touch()
        return out

    def full_data(self, best: str) -> list[dict[str, Any]]:
        """Train on all real train images, augmented if the best cheap arm is; return a line a seed."""
        arm = next(iter(parse_arms([best], ())))
        pixels, labels = self.protocol.everything()
        index = build_index(self.data)
        tested = {name: index.rows("test", name) for name in index.classes}
        test_labels = np.repeat(np.arange(len(tested)), [len(rows) for rows in tested.values()])
        test_images = [index.load(int(row)) for rows in tested.values() for row in rows]
        pools = {
            "train": self._pool([Image.fromarray(p) for p in pixels], labels),
            "test": self._pool(test_images, test_labels),
        }
        pools = grayed(pools)
        recipe = self._recipe
        kept = files.read_sealed_json(self.place / "study" / STUDY)["loop"]
        loop = replace(loop_options(recipe.downstream), **kept)
        torch.set_num_threads(loop.threads)
        counts = pools["train"].counts
        drawn = Mixture.of_amounts(pools["train"], None, amounts(counts, np.zeros_like(counts), None, True, False))
        plain = Arm("plain", augment=arm.augment)
        none = pools["test"].first(np.zeros_like(pools["test"].counts))
        lines = []
        for seed in range(self.seeds):
            found = Trial(plain, seed, drawn, recipe.downstream, loop, torch.device("cpu")).run(
                none, pools["test"], lambda: None
            )
            lines.append({"arm": FULL, "seed": seed, "test": found.test.tolist(), "seconds": found.seconds})
        return lines


def trial_lines(results: Path, seeds: int, rename: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a line for each trial of a study's folder, of so many seeds."""
    lines = []
    for path in sorted((results / TRIALS).rglob("seed-*.json")):
        values = files.read_sealed_json(path)
        arm = path.parent.name
        if rename and arm not in rename:
            continue
        seed = int(path.stem.partition("-")[2])
        if seed < seeds:
            figures_of_trial = {key: values[key] for key in ("val", "test", "seconds")}
            lines.append({"arm": rename.get(arm, arm), "seed": seed, **figures_of_trial})
    return lines


def measure(work: Path, name: str, number: int, seeds: int, deep_steps: int) -> list[dict[str, Any]]:
    """Do everything of a draw; return its lines."""
    draw = Draw(LONG_TAILS[name], name, number, work / f"{name}-{number}", seeds)
    draw.prepare()
    minutes = draw.fit_and_generate()
    found = draw.study(draw.place / "shards", draw.place / "study", None)
    draw.study(draw.deep_smote(deep_steps), draw.place / "study-deep-smote", [_DEEP_ARM])
    lines = trial_lines(draw.place / "study", seeds, {})
    lines += trial_lines(draw.place / "study-deep-smote", seeds, {_DEEP_ARM: DEEP_SMOTE})
    lines += draw.full_data(found.best)
    summary = {
        "best": found.best, "tuned": found.tuned.arm if found.tuned else found.best, "fit_minutes": minutes,
        "poor": list(draw.protocol.poor), "classifier": found.chosen, "torch": torch.__version__,
        "cores": os.cpu_count(),
    }  # fmt: skip
    return [{"data_set": name, "draw": number, **line} for line in [summary, *lines]]


@dataclass(frozen=True)
class Report:
    """What the lines of one data set say, draws being the sample."""

    lines: Sequence[dict[str, Any]]

    @functools.cached_property
    def draws(self) -> dict[int, dict[str, Any]]:
        """What was chosen in each draw."""
        return {line["draw"]: line for line in self.lines if "tuned" in line}

    @functools.cached_property
    def _figures(self) -> dict[str, dict[int, dict[str, float]]]:
        """Every figure on test, by arm and draw, as the mean over seeds; recalls by label."""
        grouped: dict[tuple[str, int], list[dict[str, float]]] = {}
        for line in self.lines:
            if "arm" in line:
                of_trial = figures(np.array(line["test"]), self.draws[line["draw"]]["poor"])
                values = {name: getattr(of_trial, name) for name in SCALARS}
                values |= {f"recall/{label}": recall for label, recall in enumerate(of_trial.recalls)}
                grouped.setdefault((line["arm"], line["draw"]), []).append(values)
        found: dict[str, dict[int, dict[str, float]]] = {}
        for (arm, draw), trials in grouped.items():
            found.setdefault(arm, {})[draw] = {key: float(np.mean([t[key] for t in trials])) for key in trials[0]}
        return found

    def values(self, arm: str, figure: str) -> list[float]:
        """A figure of an arm, draw by draw; `chosen` is each draw's own choice on val."""
        if arm == "chosen":
            return [self._figures[line["tuned"]][draw][figure] for draw, line in sorted(self.draws.items())]
        return [of_draw[figure] for _, of_draw in sorted(self._figures[arm].items())]

    @functools.cached_property
    def arms(self) -> list[str]:
        """Arms that every draw has."""
        return [arm for arm, by_draw in self._figures.items() if by_draw.keys() == self.draws.keys()]

    @functools.cached_property
    def baseline(self) -> str:
        """The cheap arm with the best mean balanced accuracy on test."""
        parsed = {arm: parse_arms([arm], ())[0] for arm in self.arms if arm not in (FULL, DEEP_SMOTE)}
        cheap = [arm for arm, parts in parsed.items() if parts.cheap]
        return max(cheap, key=lambda arm: np.mean(self.values(arm, "balanced_accuracy")))

    def difference(self, arm: str, figure: str) -> Spread:
        """The paired difference to the baseline over draws."""
        return spread(np.subtract(self.values(arm, figure), self.values(self.baseline, figure)).tolist())

    def gap_closure(self) -> Spread:
        """The share of the gap between the baseline and all real data that the choice on val closes."""
        chosen, base, full = (
            np.array(self.values(arm, "balanced_accuracy")) for arm in ("chosen", self.baseline, FULL)
        )
        return spread(((chosen - base) / (full - base)).tolist())

    def to_json(self) -> dict[str, Any]:
        """Return the main figures as plain values."""
        recalls = [
            f"recall/{label}"
            for label in range(len(next(iter(self._figures.values()))[min(self.draws)]) - len(SCALARS))
        ]
        closed = self.gap_closure()
        return {
            "gap_closure": closed.mean,
            "gap_closure_interval": [closed.low, closed.high],
            "draws": len(self.draws),
            "baseline": self.baseline,
            "chosen": [line["tuned"] for _, line in sorted(self.draws.items())],
            "poor_recall_gain": vars(self.difference("chosen", "poor_recall")),
            "recall_gains": {name: vars(self.difference("chosen", name)) for name in recalls},
            "arms": {arm: vars(spread(self.values(arm, "balanced_accuracy"))) for arm in self.arms},
        }

    def text(self) -> str:
        """Return a Markdown table of the arms, the best first, and the gap closure."""
        lines = ["| arm | balanced accuracy | vs best cheap | macro F1 | G-mean | poor recall | vs best cheap |",
                 "|---|---|---|---|---|---|---|"]  # fmt: skip
        for arm in sorted(["chosen", *self.arms], key=lambda arm: -np.mean(self.values(arm, "balanced_accuracy"))):
            cells = [
                _percent(spread(self.values(arm, "balanced_accuracy"))),
                _signed(self.difference(arm, "balanced_accuracy")),
            ]
            cells += [
                _percent(spread(self.values(arm, name))) for name in ("macro_f1", "geometric_mean", "poor_recall")
            ]
            cells.append(_signed(self.difference(arm, "poor_recall")))
            lines.append(f"| {arm}{' *' if arm == self.baseline else ''} | {' | '.join(cells)} |")
        closed = self.gap_closure()
        interval = "" if closed.low is None else f" [{closed.low:.2f}, {closed.high:.2f}]"
        return "\n".join([*lines, "", f"gap closure {closed.mean:.2f}{interval}, {len(self.draws)} draws"])


def _percent(found: Spread) -> str:
    return f"{100 * found.mean:.1f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.1f}")


def _signed(found: Spread) -> str:
    return f"{100 * found.mean:+.1f}" + (
        "" if found.low is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )


def read_reports(results: Path) -> dict[str, Report]:
    """Return the report of each data set; a draw measured again, whose first line says what it chose, counts once."""
    latest: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in map(json.loads, results.read_text(encoding="utf-8").splitlines()):
        of_draw = latest.setdefault((line["data_set"], line["draw"]), [])
        if "tuned" in line:
            of_draw.clear()
        of_draw.append(line)
    names = dict.fromkeys(name for name, _ in latest)
    return {name: Report([line for (n, _), of in latest.items() if n == name for line in of]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of data, runs and studies, outside the repository")
    parser.add_argument("--data-set", choices=sorted(LONG_TAILS), default="fashion")
    parser.add_argument("--draws", default="0", help="numbers of draws, such as 0,1,2,3,4")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of every arm and draw")
    parser.add_argument("--deep-smote-steps", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    parser.add_argument("--json", action="store_true", help="print the main figures as JSON")
    arguments = parser.parse_args()
    if arguments.report:
        reports = read_reports(arguments.results)
        if arguments.json:
            print(json.dumps({name: report.to_json() for name, report in reports.items()}, indent=2))
        else:
            print("\n\n".join(f"## {name}\n\n{report.text()}" for name, report in reports.items()))
        return
    if arguments.work is None:
        parser.error("--work is needed, or --report")
    for number in map(int, arguments.draws.split(",")):
        lines = measure(arguments.work, arguments.data_set, number, arguments.seeds, arguments.deep_smote_steps)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


if __name__ == "__main__":
    main()
