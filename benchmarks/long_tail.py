"""Do synthetic images help a classifier of a 100:1 long tail, and how much of the way to all real data do they go?

    python benchmarks/long_tail.py --work WORK --data-set fashion --draws 0,1,2,3,4
    python benchmarks/long_tail.py --report [--json]

A draw is a data set of its own: other train images in the counts of the protocol, all real test images, and val held
out from train, other images for every seed. Each has its own fit, its output, a downstream study with every arm,
DeepSMOTE in its place, and the same classifier on all real train images. All images go through the same file format.
Everything resumes: stop it at any time, the same command goes on, and a draw that is recorded is passed over. Commands
with other draws may run beside each other in one work folder, each with `--set training.threads=1`. When a draw is
complete, a line that says what was chosen and one for each trial, with its confusion matrices on val and test, go to
`results/long_tail.jsonl`; the report is made from them.

What is taken where val cannot tell arms apart (`rebalance.trials.arms.SAFE`) was learned from the first five draws, so
they cannot prove it.

    gap closure   (the arm chosen on val - the arm without synthetic images with the best mean on test)
                  / (all real data, augmented if that arm is - that arm), of balanced accuracy on test, draw by draw

Published figures for this protocol, of another classifier (ResNet-18) and another budget, so no comparison: SMOTE 70.6,
BAGAN 81.5, GAMO 83.0, DeepSMOTE 83.6 (Dablain et al., 2021; accuracy per class).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import data_sets
import deep_smote
import numpy as np
import torch
from data_sets import fashion_mnist
from long_tail_report import AUGMENTED, DEEP_SMOTE, FULL_DATA, read_lines, read_reports
from PIL import Image
from sklearn.datasets import load_digits

import rebalance
from rebalance import imaging, storage
from rebalance.cli import demo
from rebalance.config import Recipe, load_recipe
from rebalance.config.options import to_mapping
from rebalance.config.requests import DEFAULT_MULTIPLES, StudyOptions
from rebalance.imaging.views import View
from rebalance.index import build_index, carve_validation
from rebalance.runtime.devices import DEVICES, choose_device, cpu_count
from rebalance.trials import DEFAULT, Downstream
from rebalance.trials.amounts import amounts_to_draw
from rebalance.trials.arms import SAFE, SAFE_SHARE, Arm
from rebalance.trials.batches import Mixture
from rebalance.trials.classifier import loop_options
from rebalance.trials.pools import Pool, grayed
from rebalance.trials.records import TRIALS, TrialFiles, TrialRecord, read_computation, seed_of
from rebalance.trials.remedies import REMEDIES
from rebalance.trials.remedies.plain import Plain
from rebalance.trials.trial import Trial

RESULTS = Path(__file__).parent / "results" / "long_tail.jsonl"
ARMS = (*DEFAULT, "oversampling+filtered+x5+share=0.3", "oversampling+filtered+xfull+share=0.3")
"""The usual ones, and synthetic images in the place of the augmentation."""
DEEP_ARMS = {"plain+filtered+xfull": DEEP_SMOTE, "plain+augment+filtered+xfull": DEEP_SMOTE + AUGMENTED}
"""What DeepSMOTE's images, which fill up every class, are trained with, and how it is called."""
FULL_ARMS = {"plain": FULL_DATA, "plain+augment": FULL_DATA + AUGMENTED}
T = TypeVar("T")
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
class Effort:
    """How much is done of each draw.

    Attributes:
        seeds: trainings of every arm.
        deep_smote_steps: training steps of DeepSMOTE.
        arms: arms of the study.
        multiples: synthetic images of a class, times its real ones.
        workers: processes that make images.
        device: "cpu" or "cuda".
    """

    seeds: int = 3
    deep_smote_steps: int = 2000
    arms: tuple[str, ...] = ARMS
    multiples: tuple[str, ...] = DEFAULT_MULTIPLES
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Draw:
    """One draw of a protocol, in its folder."""

    protocol: LongTail
    number: int
    place: Path
    effort: Effort

    @property
    def data(self) -> Path:
        """Folder of the data set."""
        return self.place / "data"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe of the fit and of the classifier."""
        return load_recipe(self.protocol.recipe, self.protocol.overrides, self.number)

    def prepare(self) -> None:
        """Write the data set once."""
        done = self.data / ".written"
        if not done.is_file():
            shutil.rmtree(self.data, ignore_errors=True)
            self.protocol.write(self.data, self.number)
            done.touch()

    def fit(self) -> None:
        """Fit, or go on with it."""
        wanted = {str(label): self.protocol.final for label in self.protocol.poor}
        rebalance.fit(
            self.data, self.place / "run", self.recipe, balance=wanted, device=self.effort.device, progress=True
        )

    def generate(self) -> None:
        """Make the output, or what is missing of it."""
        device, workers = self.effort.device, self.effort.workers
        rebalance.generate(self.place / "run", self.place / "shards", workers=workers, device=device, progress=True)

    def study(self) -> Downstream:
        """Run the study of the output and its run."""
        return self._study(self.place / "shards", self.effort.arms, run=self.place / "run")

    def deep_study(self, out: Path) -> Downstream:
        """Run the study of DeepSMOTE's images."""
        return self._study(out, tuple(DEEP_ARMS))

    def _study(self, out: Path, arms: Sequence[str], run: Path | None = None) -> Downstream:
        study = StudyOptions(arms, self.effort.multiples, self.effort.seeds, self.recipe.data.square)
        return rebalance.downstream(
            self.data, out, results=self.place / f"study-{out.name}", run=run, recipe=self.recipe, study=study,
            device=self.effort.device, progress=True,
        )  # fmt: skip

    def deep_smote(self) -> Path:
        """Fill every class up to the largest with DeepSMOTE's images, as its paper does, in class folders."""
        steps = self.effort.deep_smote_steps
        out, training = (self.place / f"{name}-{steps}" for name in ("deep-smote", "deep-smote-training"))
        if (out / ".written").is_file():
            return out
        options = self.recipe.data
        index = carve_validation(build_index(self.data), options.val_fraction, self.number)
        rows = np.concatenate([index.rows("train", name) for name in index.classes])
        pixels = np.stack([index.square(int(row), options) for row in rows])
        labels = np.array([index.label(name) for name in index.column("class")[rows]])
        device, threads = choose_device(self.effort.device), self.recipe.training.threads
        networks = deep_smote.train(pixels, labels, steps, self.number, training, device, threads)
        counts = np.bincount(labels)
        final = {label: int(counts.max()) for label in np.flatnonzero(counts < counts.max()).tolist()}
        for label, made in deep_smote.oversample(*networks, pixels, labels, final, self.number).items():
            (out / str(label)).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(made):
                (out / str(label) / f"{number:05d}.jpg").write_bytes(imaging.encode(image, *_ENCODING))
        (out / ".written").touch()
        return out

    def full_data(self) -> list[dict[str, Any]]:
        """Train on all real train images, with and without augmentation; return a line a trial.

        Every draw has seeds of its own, because the images are the same in all.
        """
        options, computation = self.recipe.downstream, read_computation(self.place / "study-shards")
        loop = computation.applied(loop_options(options))
        key = storage.sha256_bytes(storage.canonical_json([to_mapping(options), asdict(computation)]).encode())
        trials = TrialFiles(self.place / "all-real-data", key)
        finished, pools = trials.read(), None
        first = self.number * self.effort.seeds
        if loop.threads:
            torch.set_num_threads(loop.threads)
        for seed in range(first, first + self.effort.seeds):
            for arm in (Arm(Plain.name), Arm(Plain.name, augment=True)):
                if seed not in finished.get(arm, {}):
                    pools = pools or self._full_pools()
                    counts = pools["train"].counts
                    drawn = amounts_to_draw(REMEDIES["oversampling"], counts, np.zeros_like(counts))
                    mixture, none = Mixture.of_amounts(pools["train"], None, drawn), pools["test"].first(counts * 0)
                    trial = Trial(arm, seed, mixture, options, loop, choose_device(self.effort.device))
                    trials.write(arm, seed, TrialRecord(trial.run(none, pools["test"], lambda: None), drawn))
        return trial_lines(trials.folder, range(first, first + self.effort.seeds), FULL_ARMS)

    def _full_pools(self) -> dict[str, Pool]:
        """Return all real train images, and test, as the study sees them."""
        pixels, labels = self.protocol.everything()
        index = build_index(self.data)
        tested = [[index.load(row) for row in index.rows("test", name).tolist()] for name in index.classes]
        view = View(self.recipe.data.size_px, self.recipe.data.square, _ENCODING)

        def pool(by_class: Sequence[Sequence[Image.Image]]) -> Pool:
            return Pool.of_classes([np.stack([view.of_real(image) for image in of_class]) for of_class in by_class])

        train = [[Image.fromarray(image) for image in pixels[labels == label]] for label in range(len(tested))]
        return grayed({"train": pool(train), "test": pool(tested)})

    def settings(self) -> dict[str, Any]:
        """Return what the lines of every draw depend on, without what a machine chooses."""
        values = replace(self.recipe, seed=0).to_mapping()
        for key in ("threads", "precision", "memory_format"):
            del values["training"][key]
        recipe = storage.sha256_bytes(storage.canonical_json(values).encode())
        return {
            "recipe": recipe, "counts": list(self.protocol.counts), "final": self.protocol.final,
            "seeds": self.effort.seeds, "deep_smote_steps": self.effort.deep_smote_steps,
            "arms": list(self.effort.arms), "multiples": list(self.effort.multiples), "safe": [SAFE.name, SAFE_SHARE],
        }  # fmt: skip


def trial_lines(study: Path, seeds: range, names: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return a line for each trial of a study's folder, of some seeds; with names, of these arms, so called."""
    lines = []
    for path in sorted((study / TRIALS).glob("*/seed-*.json")):
        arm, seed = path.parent.name, seed_of(path)
        if seed in seeds and (names is None or arm in names):
            found = TrialRecord.from_json(storage.read_sealed_json(path)).confusion
            values = {"val": found.val.tolist(), "test": found.test.tolist(), "seconds": found.seconds}
            lines.append({"arm": names[arm] if names else arm, "seed": seed - seeds.start, **values})
    return lines


class Clock:
    """Remembers how many minutes the sitting took that brought each station of a draw to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.minutes: dict[str, float] = storage.read_json(path) if path.is_file() else {}

    def time(self, station: str, work: Callable[[], T]) -> T:
        """Do the work of a station."""
        start = time.monotonic()
        found = work()
        if station not in self.minutes:
            self.minutes[station] = round((time.monotonic() - start) / 60, 1)
            storage.write_json(self.path, self.minutes)
        return found


def measure(draw: Draw) -> list[dict[str, Any]]:
    """Do everything of a draw; return its lines, first what was chosen."""
    draw.prepare()
    clock, seeds = Clock(draw.place / "minutes.json"), range(draw.effort.seeds)
    clock.time("fit", draw.fit)
    clock.time("generate", draw.generate)
    found = clock.time("study", draw.study)
    deep = clock.time("DeepSMOTE", draw.deep_smote)
    deep_study = clock.time("study of DeepSMOTE", lambda: draw.deep_study(deep))
    full = clock.time("all real data", draw.full_data)
    lines = trial_lines(found.results, seeds) + trial_lines(deep_study.results, seeds, DEEP_ARMS) + full
    notes = [note.replace(f"{draw.place}/", "") for note in found.notes]
    summary = {
        "best": found.best, "tuned": found.tuned.arm if found.tuned else found.best, "poor": list(draw.protocol.poor),
        "minutes": clock.minutes, "notes": notes, "classifier": found.classifier, "torch": torch.__version__,
        "cores": os.cpu_count(), "device": str(choose_device(draw.effort.device)), "settings": draw.settings(),
    }  # fmt: skip
    return [summary, *lines]


def measure_missing(draws: Sequence[Draw], name: str, results: Path) -> None:
    """Measure the draws that are not recorded as they are asked for, and record each when it is complete."""
    for draw in draws:
        recorded = read_lines(results).get((name, draw.number), [{}])
        if recorded[0].get("settings") == draw.settings():
            print(f"{name}, draw {draw.number}: recorded")
            continue
        record(results, [{"data_set": name, "draw": draw.number, **line} for line in measure(draw)], draw.place.parent)


def record(results: Path, lines: Sequence[dict[str, Any]], work: Path) -> None:
    """Add lines to a file in one piece, after whoever else records draws from the same work folder."""
    with storage.locked(work, wait=True):
        text = results.read_text(encoding="utf-8") if results.is_file() else ""
        storage.write_text(results, text + "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def print_reports(results: Path, as_json: bool) -> None:
    reports = read_reports(results)
    if not reports:
        raise SystemExit(f"nothing is recorded in {results}")
    if as_json:
        print(json.dumps({name: report.to_json() for name, report in reports.items()}, indent=2))
    else:
        print("\n\n".join(f"## {name}\n\n{report.text()}" for name, report in reports.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of data, runs and studies, outside the repository")
    parser.add_argument("--data-set", choices=sorted(LONG_TAILS), default="fashion")
    parser.add_argument("--draws", default="0", help="numbers of draws, such as 0,1,2,3,4")
    parser.add_argument("--seeds", type=int, default=Effort.seeds, help="trainings of every arm and draw")
    parser.add_argument("--deep-smote-steps", type=int, default=Effort.deep_smote_steps)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    parser.add_argument("--json", action="store_true", help="print the main figures as JSON")
    arguments = parser.parse_args()
    if arguments.report:
        print_reports(arguments.results, arguments.json)
        return
    if arguments.work is None:
        parser.error("--work is needed, or --report")
    name, protocol = arguments.data_set, LONG_TAILS[arguments.data_set]
    protocol = replace(protocol, overrides=(*protocol.overrides, *arguments.changes))
    workers = cpu_count() if choose_device(arguments.device).type == "cpu" else 1
    effort = Effort(arguments.seeds, arguments.deep_smote_steps, workers=workers, device=arguments.device)
    numbers = map(int, arguments.draws.split(","))
    draws = [Draw(protocol, number, arguments.work / f"{name}-{number}", effort) for number in numbers]
    measure_missing(draws, name, arguments.results)


if __name__ == "__main__":
    main()
