"""Fit, generate and judge: what a translator's images are worth, on one row of figures.

    python benchmarks/translator.py --work WORK --name base
    python benchmarks/translator.py --work WORK --name style-16 --set balagan.generator.style_size=16
    python benchmarks/translator.py --report

A row is one fit of a recipe (with `--set` changes) on the long tail of Fashion-MNIST, its reversal or the digits,
followed by 1,000 images of each poor class through `generate`, without any gate. It is appended to
`benchmarks/results/translator.jsonl`; runs, pictures and contact sheets stay in WORK. Real images to compare with are
those of the test split, which no fit sees. `results/translator_changes.jsonl` has short fits that change one thing
each: `--report --wide --results FILE` puts each in a line.

    agreement           share that a classifier trained on all real images takes for the class; as a ratio to that of
                        real test images
    source dependence   variance over sources / variance over references, in pixels, edges and features
    reference variance  variance over references / variance of real test images, in pixels
    fd, floor           squared Fréchet distance to real test images in principal components of the features; and what
                        two sets of these sizes drawn from one Gaussian would have. The components are those of all
                        classes that take part, so compare FD of rows with the same sources only
    coverage            share of real test images that have a synthetic image nearer than their fifth real neighbour
    of train            the same figure of the class's real train images, which are few
    nearest real        distance to the nearest train image of the class, median and 5th percentile, as ratios to those
                        of real test images
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import classifier
import data_sets
import machine
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import rebalance
from rebalance import imaging, reporting, storage
from rebalance.config import Recipe, load_recipe
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.measures import frechet
from rebalance.measures.features import FeatureExtractor, make_extractor
from rebalance.measures.neighbours import nearest_distances, neighbourhoods
from rebalance.planning.images import images_of_target
from rebalance.shards import read_synthetic
from rebalance.training import RunDirectory, reference_labels
from rebalance.training.previews import ProbeDraw, make_all, source_dependence

RESULTS = Path(__file__).parent / "results" / "translator.jsonl"
N_IMAGES = 1000
_CLASSIFIER_STEPS = {"digits": 600}
_CHOSEN_BY_MACHINE = ("threads", "precision", "memory_format")
_CLASSIFIER_SECTION = "downstream."
_DIMENSIONS = 64


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one poor class; the module's head says what they are."""

    n_real: int
    n_held_out: int
    agreement: float
    agreement_real: float
    agreement_ratio: float
    source_dependence: float
    source_dependence_edges: float
    source_dependence_features: float
    reference_variance: float
    fd: float
    floor: float
    fd_train: float
    coverage: float
    coverage_train: float
    nearest_real: tuple[float, float]


@dataclass(frozen=True)
class Judge:
    """What images of one data set are judged with.

    Attributes:
        extractor: features.
        model: the classifier trained on all real images.
        projection: principal components of real features.
    """

    extractor: FeatureExtractor
    model: nn.Module
    projection: frechet.Projection

    def judge(
        self, label: int, train: np.ndarray, test: np.ndarray, made: np.ndarray, translations: torch.Tensor, seed: int
    ) -> ClassFigures:
        """Judge one class.

        Args:
            label: its label.
            train: its real train images, (n, H, W, C) uint8.
            test: its held-out real images.
            made: its synthetic images.
            translations: (sources, references, C, H, W) in [-1, 1].
            seed: seed of the floor's draws.
        """
        of_train, of_test, of_made = (self.extractor.extract_all(pixels) for pixels in (train, test, made))
        small_train, small_test, small_made = map(self.projection.apply, (of_train, of_test, of_made))
        distance = frechet.compare(small_test, small_made, draws=20, seed=seed)
        agreement, real = (float((classifier.predict(self.model, p) == label).mean()) for p in (made, test))
        over = source_dependence(translations)
        test_variance = float(imaging.to_float(torch.from_numpy(test)).var(dim=0, unbiased=False).mean())
        return ClassFigures(
            n_real=len(train),
            n_held_out=len(test),
            agreement=agreement,
            agreement_real=real,
            agreement_ratio=agreement / real,
            source_dependence=over.ratio,
            source_dependence_edges=source_dependence(_edges(translations)).ratio,
            source_dependence_features=source_dependence(self._features(translations)).ratio,
            reference_variance=over.over_references / test_variance,
            fd=distance.distance,
            floor=distance.floor,
            fd_train=frechet.frechet_distance(frechet.moments(small_test), frechet.moments(small_train)),
            coverage=neighbourhoods(of_test, of_made).coverage,
            coverage_train=neighbourhoods(of_test, of_train).coverage,
            nearest_real=nearest_real_ratios(of_train, of_test, of_made),
        )

    def _features(self, translations: torch.Tensor) -> torch.Tensor:
        pixels = imaging.to_pixels(translations.flatten(0, 1))
        features = torch.from_numpy(self.extractor.extract_all(pixels))
        return features.reshape(*translations.shape[:2], -1, 1, 1)


def _edges(translations: torch.Tensor) -> torch.Tensor:
    """Return Sobel gradient magnitudes of (sources, references, C, H, W)."""
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    kernel = torch.stack([sobel, sobel.T])[:, None]
    gray = translations.flatten(0, 1).mean(1, keepdim=True)
    edges = F.conv2d(gray, kernel).square().sum(1, keepdim=True).sqrt()
    return edges.reshape(*translations.shape[:2], *edges.shape[1:])


def nearest_real_ratios(train: np.ndarray, test: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Return median and 5th percentile of made images' distances to their nearest train image, over those of test."""
    of_made, of_test = (np.percentile(nearest_distances(train, x), [50, 5]) for x in (made, test))
    ratios = of_made / of_test
    return float(ratios[0]), float(ratios[1])


def squares(run: LoadedRun, rows: np.ndarray) -> np.ndarray:
    """Return real images, by their ids, as the model's squares, (n, H, W, C) uint8."""
    return np.stack([run.index.square(int(row), run.recipe.data) for row in rows])


def translations_of(run: LoadedRun, target: str) -> torch.Tensor:
    """Translate 16 sources with 16 references of a target: (16, 16, C, H, W)."""
    model, images = run.model_of(target), images_of_target(run.plan, run.index, target)
    draw = ProbeDraw(
        model.method,
        run.recipe.seed,
        lambda ids: imaging.to_float(torch.from_numpy(squares(run, ids))),
        lambda ids: reference_labels(ids.tolist(), model.modalities, run.modalities),
    )
    probe = draw.draw(target, run.plan.target(target).label, images, model.laws.get(target))
    return make_all(model.method, probe, torch.device("cpu"))


def make_judge(work: Path, data_set: str, recipe: Recipe, run: LoadedRun) -> Judge:
    """Train (once) the classifier on all real images, and fit the projection to the held-out ones."""
    pixels, labels = data_sets.DATA_SETS[data_set].everything()
    options = recipe.data
    resized = np.stack(
        [imaging.to_square(Image.fromarray(p), options.size_px, options.channels, options.square) for p in pixels]
    )
    steps = _CLASSIFIER_STEPS.get(data_set, 2500)
    weights = work / f"classifier-{data_set.partition('-')[0]}-{options.size_px}px.safetensors"
    model = classifier.train_or_load(weights, resized, labels, steps, seed=0)
    extractor = make_extractor(recipe.features, torch.device("cpu"))
    held_out = np.concatenate([squares(run, run.index.rows("test", name)[:200]) for name in run.plan.classes()])
    return Judge(extractor, model, frechet.fit_projection(extractor.extract_all(held_out), _DIMENSIONS))


def fit_and_generate(arguments: argparse.Namespace) -> tuple[LoadedRun, float | None]:
    """Fit (or resume) a run, make its shards and contact sheet; return it with its minutes, None when resumed."""
    data_set = data_sets.DATA_SETS[arguments.data_set]
    data = data_set.prepared(arguments.work / arguments.data_set)
    place = arguments.work / arguments.name
    wanted = {name: n + N_IMAGES for name, n in data_set.targets.items()}
    start = time.monotonic()
    fitted = rebalance.fit(
        data,
        place / "run",
        arguments.recipe,
        balance=wanted,
        overrides=arguments.set,
        seed=arguments.seed,
        device="cpu",
        progress=True,
    )
    minutes = None if fitted.resumed else round((time.monotonic() - start) / 60, 1)
    unfiltered = rebalance.FilterChoice(filter_images=False)
    rebalance.generate(
        place / "run", place / "shards", balance=wanted, filtering=unfiltered, device="cpu", overwrite=True
    )
    directory = RunDirectory(place / "run")
    sheet = reporting.contact_sheet(directory, place / "shards", columns=16)
    storage.write_bytes(place / "contact-sheet.png", imaging.png_bytes(sheet))
    return load_run(directory, str(data), torch.device("cpu")), minutes


def judge_all(run: LoadedRun, judge: Judge, shards: Path, seed: int) -> dict[str, ClassFigures]:
    """Judge every target of a run by its shards."""
    made: dict[str, list[np.ndarray]] = {target.name: [] for target in run.plan.targets}
    for image in read_synthetic(shards):
        made[image.record.class_name].append(image.pixels)
    return {
        target.name: judge.judge(
            target.label,
            squares(run, run.index.rows("train", target.name)),
            squares(run, run.index.rows("test", target.name)),
            np.stack(made[target.name]),
            translations_of(run, target.name),
            seed,
        )
        for target in run.plan.targets
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit, generate and judge; return the row."""
    run, minutes = fit_and_generate(arguments)
    torch.set_num_threads(run.recipe.training.threads)
    judge = make_judge(arguments.work, arguments.data_set, run.recipe, run)
    figures = judge_all(run, judge, arguments.work / arguments.name / "shards", arguments.seed)
    return {
        "name": arguments.name,
        "data_set": arguments.data_set,
        "recipe": arguments.recipe,
        "values": recipe_values(run.recipe),
        "set": arguments.set,
        "seed": arguments.seed,
        "n": N_IMAGES,
        "steps": run.recipe.training.steps,
        "fit_minutes": minutes,
        "threads": run.recipe.training.threads,
        "machine": machine.description(torch.device("cpu")),
        "sources": {target.name: [source.name for source in target.sources] for target in run.plan.targets},
        "classes": {name: _rounded(asdict(of_class)) for name, of_class in figures.items()},
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: np.round(value, 4).tolist() if np.ndim(value) else round(value, 4) for key, value in values.items()}


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe sets for images to other than defaults, by dotted key, without what a machine chooses."""
    default = Recipe(method=recipe.method, options=type(recipe.options)())
    values, defaults = (_flat(either.to_mapping(), "") for either in (recipe, default))
    return {
        key: value
        for key, value in values.items()
        if value != defaults[key]
        and key.rpartition(".")[2] not in _CHOSEN_BY_MACHINE
        and not key.startswith(_CLASSIFIER_SECTION)
    }


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Read all rows, the oldest first."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def shipped_rows(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, by data set, the newest row whose recipe is the one that is shipped under its name now."""
    return {row["data_set"]: row for row in rows if row["values"] == recipe_values(load_recipe(row["recipe"]))}


def report_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return all rows as a Markdown table."""
    lines = [
        "| row | data | steps | min | class | agreement ratio | source dependence: pixels, edges, features | "
        "reference variance | FD (floor, of train) | coverage (of train) | nearest real: median, 5% |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, c in row["classes"].items():
            nearest = ", ".join(f"{value:.2f}" for value in c["nearest_real"])
            lines.append(
                f"| {row['name']} | {row['data_set']} | {row['steps']} | {row['fit_minutes'] or ''} | {name} "
                f"| {c['agreement_ratio']:.2f} | {c['source_dependence']:.2f}, {c['source_dependence_edges']:.2f}, "
                f"{c['source_dependence_features']:.2f} | {c['reference_variance']:.2f} "
                f"| {c['fd']:.0f} ({c['floor']:.0f}, {c['fd_train']:.0f}) "
                f"| {c['coverage']:.2f} ({c['coverage_train']:.2f}) | {nearest} |"
            )
    return "\n".join(lines)


def changes_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table of a line each, the classes side by side in the order of their names."""
    figures = (
        ("agreement_ratio", 2), ("source_dependence", 2), ("source_dependence_features", 2), ("reference_variance", 2),
        ("fd", 0), ("coverage", 2),
    )  # fmt: skip
    lines = [
        "| row | steps | min | agreement ratio | source dependence: pixels | features | reference variance | FD | "
        "coverage | nearest real, 5% |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        classes = [row["classes"][name] for name in sorted(row["classes"])]
        cells = [", ".join(f"{of_class[name]:.{digits}f}" for of_class in classes) for name, digits in figures]
        cells.append(", ".join(f"{of_class['nearest_real'][1]:.2f}" for of_class in classes))
        lines.append(f"| {row['name']} | {row['steps']} | {row['fit_minutes'] or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of data, runs and pictures, outside the repository")
    parser.add_argument("--name", help="name of the row")
    parser.add_argument("--data-set", choices=sorted(data_sets.DATA_SETS), default="fashion")
    parser.add_argument("--recipe", default="fashion-cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    parser.add_argument("--wide", action="store_true", help="report a row a line, its classes side by side")
    parser.add_argument("--json", action="store_true", help="print the shipped recipe's figures as JSON")
    arguments = parser.parse_args()
    if not arguments.report:
        if not (arguments.work and arguments.name):
            parser.error("--work and --name are needed, or --report")
        row = measure(arguments)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(report_text([row]))
    elif arguments.json:
        shipped = shipped_rows(read_rows(arguments.results))
        others = {name: row for name, row in shipped.items() if name != arguments.data_set}
        print(json.dumps({**shipped.get(arguments.data_set, {}), "other_data_sets": others}, indent=2))
    else:
        print((changes_text if arguments.wide else report_text)(read_rows(arguments.results)))


if __name__ == "__main__":
    main()
