"""How cost grows with the number of poor classes: one model for all of them against one model for each.

    python benchmarks/classes.py --work WORK
    python benchmarks/classes.py --work WORK --classes 1 3 --steps 50 100
    python benchmarks/classes.py --report

Data: Fashion-MNIST's train images. T-shirts to coats (labels 0 to 4) are the rich classes, 400 images each. Labels 5 to
9 are split into six sub-labels each, by k-means on their pixels: 30 poor classes of 30 train images, with 150 further
images to compare with. All data sets hold the same rich classes, and the first 1, 3, 10 or 30 poor ones.

A *piece* is one fit of `fashion-cpu`, followed by 200 images of each of its poor classes and their squared Fréchet
distance (FD) to the further images, in 64 principal components that are the same for all. A joint piece has k poor
classes. A piece alone has one, so the alone pieces of the first k classes are what one model for each of k costs, and
the first is also the joint piece of k = 1. Each is fitted anew for every number of steps, since learning rates fall to
the end of a fit. A piece is one line of `results/classes.jsonl`; the same command again makes those that are missing.

    seconds         of training, from the log's times, without reading the data; models alone are added up
    quality         mean FD over the k classes
    to equal        seconds until the worse one's last quality is reached, between two numbers of steps by interpolation
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_sets import fashion_mnist
from PIL import Image
from sklearn.cluster import KMeans
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import rebalance
from rebalance import imaging
from rebalance.config import load_recipe
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.measures import frechet
from rebalance.measures.features import FeatureExtractor, make_extractor
from rebalance.shards import read_synthetic
from rebalance.training import RunDirectory

RESULTS = Path(__file__).parent / "results" / "classes.jsonl"
RICH, POOR, PARTS = range(5), range(5, 10), 6
N_RICH, N_POOR, N_FURTHER, N_MADE = 400, 30, 150, 200
_DIMENSIONS = 64


@dataclass(frozen=True)
class Piece:
    """One fit.

    Attributes:
        kind: "joint" or "alone".
        number: how many poor classes a joint fit has; which one a fit alone has.
        steps: steps of training.
    """

    kind: str
    number: int
    steps: int

    def poor(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the poor classes that take part."""
        return tuple(names[: self.number]) if self.kind == "joint" else (names[self.number],)

    @property
    def name(self) -> str:
        """A name for its files."""
        return f"{self.kind}-{self.number:02d}-{self.steps}"


def pieces(numbers: Sequence[int], steps: Sequence[int], joint_steps: Sequence[int]) -> list[Piece]:
    """Return all fits that these numbers of poor classes need, for lengths of one class and of several."""
    alone = [Piece("alone", number, n) for number in range(max(numbers)) for n in steps]
    joint = [Piece("joint", k, n) for k in sorted(numbers) if k > 1 for n in joint_steps]
    return [*joint, *alone]


def sub_labels(pixels: np.ndarray, parts: int) -> np.ndarray:
    """Return sub-labels (n,) of images (n, H, W) of one class by k-means, the largest part 0."""
    found = KMeans(parts, n_init=3, random_state=0).fit_predict(pixels.reshape(len(pixels), -1).astype(np.float32))
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=parts), kind="stable"))
    return rank[found]


def write_data(folder: Path) -> None:
    """Write the images of all classes, and a list of them that says which part of which split each is."""
    pixels, labels = fashion_mnist.load("train", None)
    rng, rows = np.random.default_rng(0), []
    for label in (*RICH, *POOR):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        if label in RICH:
            rows += [(row, f"rich-{label}", "train") for row in of_class[:N_RICH]]
            continue
        parts = sub_labels(pixels[of_class], PARTS)
        for part in range(PARTS):
            own, name = of_class[parts == part][: N_POOR + N_FURTHER], f"poor-{part}-{label}"
            rows += [(row, name, "train" if number < N_POOR else "test") for number, row in enumerate(own)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "all.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for row, name, split in rows:
            Image.fromarray(pixels[row]).save(folder / f"{row:05d}.png")
            table.writerow((f"{row:05d}.png", name, split))
    (folder / ".written").touch()


def poor_names() -> list[str]:
    """Return the poor classes in the order in which they are added: first one part of every label."""
    return [f"poor-{part}-{label}" for part in range(PARTS) for label in POOR]


def manifest_of(folder: Path, poor: Sequence[str], name: str) -> Path:
    """Write a manifest of the rich classes and some poor ones."""
    with open(folder / "all.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    path = folder / f"{name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(r for r in rows if r[1].startswith("rich-") or r[1] in poor)])
    return path


def further_images(folder: Path, size_px: int) -> dict[str, np.ndarray]:
    """Return the images to compare with, (n, H, W, 1) uint8, of every poor class."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in poor_names()}
    with open(folder / "all.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test":
                image = Image.open(folder / row["path"])
                found[row["label"]].append(imaging.to_square(image, size_px, 1, "pad"))
    return {name: np.stack(of_class) for name, of_class in found.items()}


@dataclass(frozen=True)
class Judge:
    """Measures FD in components that are the same for all pieces."""

    extractor: FeatureExtractor
    projection: frechet.Projection
    real: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, folder: Path) -> Judge:
        """Fit the components to the further images of all poor classes."""
        recipe = load_recipe("fashion-cpu")
        extractor = make_extractor(recipe.features, torch.device("cpu"))
        features = {n: extractor.extract_all(p) for n, p in further_images(folder, recipe.data.size_px).items()}
        projection = frechet.fit_projection(np.concatenate(list(features.values())), _DIMENSIONS)
        return cls(extractor, projection, {name: projection.apply(of_class) for name, of_class in features.items()})

    def fd(self, shards: Path) -> dict[str, float]:
        """Return the FD of every class of an output."""
        made: dict[str, list[np.ndarray]] = {}
        for image in read_synthetic(shards):
            made.setdefault(image.record.class_name, []).append(image.pixels)
        small = {name: self.projection.apply(self.extractor.extract_all(p)) for name, p in made.items()}
        return {
            name: round(frechet.frechet_distance(frechet.moments(self.real[name]), frechet.moments(features)), 3)
            for name, features in sorted(small.items())
        }


def training_seconds(logs: Path, steps: int) -> float:
    """Return the seconds of all steps, from the times at which the first and the last of them were logged."""
    times = [(e.step, e.wall_time) for path in logs.rglob("events.*") for e in EventFileLoader(str(path)).Load()]
    (first, begun), (last, ended) = (choose(t for t in times if t[0]) for choose in (min, max))
    return (ended - begun) * steps / (last - first)


def size_of(run: LoadedRun) -> dict[str, int]:
    """Return parameters and bytes of the weights of the networks that training has and generation loads."""
    parameters = [p for model in run.models for n in model.method.networks.values() for p in n.parameters()]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def measure(piece: Piece, work: Path, judge: Judge, changes: Sequence[str]) -> dict[str, Any]:
    """Fit, generate and judge one piece; return its line."""
    poor, place = piece.poor(poor_names()), work / piece.name
    wanted = dict.fromkeys(poor, N_POOR + N_MADE)
    overrides = [
        f"training.steps={piece.steps}", f"training.log_every_steps={max(1, piece.steps // 20)}",
        f"training.preview_every_steps={piece.steps}", f"training.checkpoint_every_steps={piece.steps}",
        "data.val_fraction=0", *changes,
    ]  # fmt: skip
    data, begun, used = manifest_of(work / "data", poor, piece.name), time.perf_counter(), time.process_time()
    # A piece that was cut short begins again, because its time must be that of one sitting.
    rebalance.fit(data, place / "run", "fashion-cpu", balance=wanted, overrides=overrides, device="cpu", overwrite=True)
    whole, used = time.perf_counter() - begun, time.process_time() - used
    unfiltered = rebalance.FilterChoice(filter_images=False)
    rebalance.generate(
        place / "run", place / "shards", balance=wanted, filtering=unfiltered, device="cpu", overwrite=True
    )
    run = load_run(RunDirectory(place / "run"), None, torch.device("cpu"))
    row = {
        "kind": piece.kind, "number": piece.number, "steps": piece.steps, "set": list(changes),
        "seconds": round(training_seconds(place / "run" / "logs", piece.steps), 2),
        "fit_seconds": round(whole, 2), "fit_cpu_seconds": round(used, 2), "fd": judge.fd(place / "shards"),
        **size_of(run), "threads": run.recipe.training.threads, "precision": run.recipe.training.precision,
        "memory_format": run.recipe.training.memory_format, "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    shutil.rmtree(place)
    return row


@dataclass(frozen=True)
class Point:
    """What some steps came to: seconds of training, and mean FD."""

    seconds: float
    quality: float


def points_of(rows: Sequence[Mapping[str, Any]], kind: str, k: int) -> list[Point]:
    """Return the points of k poor classes, for ascending steps; those of models alone are added up."""
    found = {(row["kind"], row["number"], row["steps"]): row for row in rows}
    numbers = [k] if kind == "joint" and k > 1 else list(range(k))
    kind = "joint" if kind == "joint" and k > 1 else "alone"
    points = []
    for steps in sorted({key[2] for key in found}):
        own = [found[kind, number, steps] for number in numbers if (kind, number, steps) in found]
        if len(own) == len(numbers):
            fd = [value for row in own for value in row["fd"].values()]
            points.append(Point(sum(row["seconds"] for row in own), sum(fd) / len(fd)))
    return points


def seconds_to(points: Sequence[Point], quality: float) -> float:
    """Return the seconds at which a quality (lower is better) is first reached, infinite if it never is."""
    if points and points[0].quality <= quality:
        return points[0].seconds
    for before, after in itertools.pairwise(points):
        if after.quality <= quality:
            share = (before.quality - quality) / (before.quality - after.quality)
            return before.seconds + share * (after.seconds - before.seconds)
    return float("inf")


def comparisons(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, for every number of poor classes with all its pieces, what each way costs to equal quality."""
    numbers = sorted({1, *(row["number"] for row in rows if row["kind"] == "joint")})
    for k in numbers:
        joint, alone = points_of(rows, "joint", k), points_of(rows, "alone", k)
        if not joint or not alone:
            continue
        quality = max(joint[-1].quality, alone[-1].quality)
        models = (_fits(rows, "joint", [k]) if k > 1 else _fits(rows, "alone", [0]), _fits(rows, "alone", range(k)))
        yield {
            "k": k, "quality": quality, "joint": seconds_to(joint, quality), "alone": seconds_to(alone, quality),
            "last": (joint[-1], alone[-1]),
            "parameters": [sum(row["parameters"] for row in fits) for fits in models],
            "bytes": [sum(row["bytes"] for row in fits) for fits in models],
        }  # fmt: skip


def _fits(rows: Sequence[Mapping[str, Any]], kind: str, numbers: Sequence[int] | range) -> list[Mapping[str, Any]]:
    """Return one row of each of these fits; how many steps it had does not change its size."""
    found = {row["number"]: row for row in rows if row["kind"] == kind}
    return [found[number] for number in numbers]


def report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was measured as a Markdown table, and how joint training grows."""
    lines = [
        "| poor classes | mean FD after the last step: joint, alone | equal FD | seconds to it: joint, alone "
        "| times faster | parameters: joint, alone | MB of weights: joint, alone |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {row["k"]: row for row in comparisons(rows)}
    for k, row in found.items():
        joint, alone = row["last"]
        sizes = ", ".join(f"{n:,}" for n in row["parameters"])
        megabytes = ", ".join(f"{n / 1e6:.1f}" for n in row["bytes"])
        lines.append(
            f"| {k} | {joint.quality:.0f}, {alone.quality:.0f} | {row['quality']:.0f} "
            f"| {row['joint']:.0f}, {row['alone']:.0f} | {row['alone'] / row['joint']:.2f} "
            f"| {sizes} | {megabytes} |"
        )
    if {1, 10} <= found.keys():
        lines += ["", f"joint(10) / joint(1): {found[10]['joint'] / found[1]['joint']:.2f} (wanted: at most 2)"]
    return "\n".join(lines)


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Return all lines, none where there is no file yet."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder outside the repository")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 3, 10, 30], help="numbers of poor classes")
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 500, 1000], help="lengths of training")
    parser.add_argument("--joint-steps", type=int, nargs="+", help="those of several classes; default: the same")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change of the recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.work is None:
            parser.error("--work is needed, or --report")
        if not 1 <= min(arguments.classes) <= max(arguments.classes) <= len(poor_names()):
            parser.error(f"--classes: 1 to {len(poor_names())}")
        run_all(arguments)
    print(report_text(read_rows(arguments.results)))


def run_all(arguments: argparse.Namespace) -> None:
    """Measure every piece that has no line yet."""
    if not (arguments.work / "data" / ".written").is_file():
        write_data(arguments.work / "data")
    judge = Judge.of(arguments.work / "data")
    done = {(r["kind"], r["number"], r["steps"], tuple(r["set"])) for r in read_rows(arguments.results)}
    for piece in pieces(arguments.classes, arguments.steps, arguments.joint_steps or arguments.steps):
        if (piece.kind, piece.number, piece.steps, tuple(arguments.set)) in done:
            continue
        row = measure(piece, arguments.work, judge, arguments.set)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
