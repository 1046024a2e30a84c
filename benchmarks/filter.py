"""What the filter's scores are worth, against other ways to choose among a translator's images.

    python benchmarks/filter.py --run RUN [--run RUN] --classifier FILE
    python benchmarks/filter.py --run RUN [--run RUN] --classifier FILE --planted
    python benchmarks/filter.py --cost --work WORK
    python benchmarks/filter.py --report [--json]

RUN is a run of `benchmarks/translator.py` on the long tail of Fashion-MNIST, and FILE the classifier of all real images
that it has trained. Of several runs, such as fits of other seeds, means and their errors are over the runs; of one,
over the seeds of its candidates. For each run, poor class and seed, the filter is calibrated on a pool of 512
candidates; then 25, 50 and 75% of 1,500 others are kept, as many for each way of choosing, and compared with the real
*test* images:

    random          by chance
    discriminator   by D_adv's score for the class
    confidence      by the confidence that the filter asks for
    realism         k-NN realism against the train images (Kynkäänniemi et al., 2019, section 3.2)
    first_order     by influence on the Fréchet distance at the whole pool's moments
    influence       by influence as the filter takes it, at the moments of what is kept, and nothing else
    default         those that fail another check last, then by influence as the filter takes it

FD is in 64 principal components of test features; `agreement` is the share that the classifier of all real images takes
for the class. `--planted` replaces 20% of the candidates by real images of other classes, 10% by near copies of real
train images (moved by a pixel, JPEG 90, or flipped, a third each) and 10% by images with added noise, and reports each
reason's recall, its precision among these and the candidates that were left alone, the share of real test images that
it would drop, and what the classifier of all real images says of the candidates left alone that it drops. Lines go to
`results/filter.jsonl`, a line about each run first, in place of earlier ones of the same runs; `--report` tells of the
runs that were measured last, and for each class and share whether `default` is within one standard error of the best
FD, and what it covers against `random`.

`--cost` needs no run: it trains `fashion-cpu` for a step on the digits and compares the processor's time of scoring and
judging an image, features given, with that of making one (translation, features, JPEG), in one process on one thread
and in turns, for 50, 200 and 1,000 real train images whose features are drawn. The roughness of images, which needs
their pixels, is timed apart. Lines go to `results/filter_cost.jsonl`.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import classifier
import faiss
import generate
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_model
from translator import recipe_values

from rebalance import imaging, storage
from rebalance.filtering import (
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    OUTLIER,
    Criteria,
    Evidence,
    FilterOptions,
    RealFeatures,
    evidence_from,
    evidence_of,
    fit_filter,
    fit_space,
    real_evidence,
)
from rebalance.filtering.calibration import RunView
from rebalance.filtering.checks.outlier import texture
from rebalance.filtering.fitting import FittedFilter
from rebalance.filtering.image_filter import ImageFilter, Space, Verdict
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.generation.slots import Slot
from rebalance.generation.synthesizer import Made, Synthesizer, batches_by_model
from rebalance.index.features import real_features
from rebalance.measures import frechet
from rebalance.measures.features import make_extractor
from rebalance.measures.influence import influence_at
from rebalance.measures.kid import kernel_distance
from rebalance.measures.neighbours import neighbourhoods
from rebalance.runtime.threads import torch_threads
from rebalance.training import RunDirectory

RESULTS = Path(__file__).parent / "results" / "filter.jsonl"
COST_RESULTS = RESULTS.with_name("filter_cost.jsonl")
COST_REAL, COST_IMAGES, COST_ROUNDS = (50, 200, 1000), 512, 5
POOL, CANDIDATES, DIMENSIONS = 512, 1500, 64
SHARES = (0.25, 0.5, 0.75)
_NEIGHBOURS = 3
_PLANTED = {
    "recall": "recall", "precision": "precision", "real_test": "real test images dropped",
    "left_alone": "candidates dropped", "agreement": "their agreement", "agreement_of_named": "that of those dropped",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What all classes share.

    Attributes:
        run: the run.
        synthesizer: makes candidates with features and confidence.
        real: features of real train and val images.
        test: features of real test images by class.
        space: what the filters share.
        judge: the classifier of all real images.
        projection: principal components of test features, in which FD is taken.
    """

    run: LoadedRun
    synthesizer: Synthesizer
    real: RealFeatures
    test: Mapping[str, np.ndarray]
    space: Space
    judge: torch.nn.Module
    projection: frechet.Projection

    def pixels(self, split: str, name: str, n: int | None = None) -> np.ndarray:
        """Return the first n images of a class as the model's squares, (n, H, W, C) uint8."""
        rows = self.run.index.rows(split, name)[:n]
        return np.stack([self.run.index.square(int(row), self.run.recipe.data) for row in rows])

    def extract(self, pixels: np.ndarray) -> np.ndarray:
        """Return features of images (n, H, W, C) uint8."""
        return self.synthesizer.extractor.extract_all(pixels)


def load(run_path: Path, weights: Path) -> Setting:
    """Load a run, its real features and the classifier."""
    device = torch.device("cpu")
    run = load_run(RunDirectory(run_path), None, device)
    extractor = make_extractor(run.recipe.features, device)
    index, options = run.index, run.recipe.data
    targets = tuple(target.name for target in run.plan.targets)
    synthesizer = Synthesizer(run, device, extractor)
    real = real_evidence(RunView(run, synthesizer, extractor), Criteria(FilterOptions()), targets, run.recipe.seed)
    test = {name: real_features(index, index.rows("test", name), options, extractor) for name in targets}
    judge = classifier.network(options.size_px, len(index.classes))
    load_model(judge, str(weights))
    return Setting(
        run=run,
        synthesizer=synthesizer,
        real=real,
        test=test,
        space=fit_space(real, run.recipe.filtering.dimensions, run.recipe.plan.feature_images, 0),
        judge=judge.eval(),
        projection=frechet.fit_projection(np.concatenate([f[:200] for f in test.values()]), DIMENSIONS),
    )


def candidates(setting: Setting, target: str, seed: int) -> list[Made]:
    """Make the pool and what is chosen from."""
    run, synthesizer = setting.run, setting.synthesizer
    stream = run.candidate_stream(f"benchmark/{seed}")
    drawn = [stream.draw(Slot(target, ordinal), 0) for ordinal in range(POOL + CANDIDATES)]
    made: list[Made] = []
    for batch in batches_by_model(run, drawn, synthesizer.batch):
        made += synthesizer.make(batch, synthesizer.load_sources(batch))
    return made


def fitted(setting: Setting, target: str, pool: list[Made], seed: int, keep: float | None = None) -> FittedFilter:
    """Calibrate the filter of a class."""
    evidence = evidence_of(pool, setting.synthesizer)
    return fit_filter(
        target,
        setting.real,
        setting.space,
        evidence,
        FilterOptions(limits={} if keep is None else {"keep": keep}),
        seed,
    )


def orders(setting: Setting, target: str, made: list[Made], seed: int, share: float) -> dict[str, np.ndarray]:
    """Return, for each way of choosing a share of the candidates after the pool, their positions, the best first."""
    pool, chosen_from = made[:POOL], made[POOL:]
    found = fitted(setting, target, pool, seed, share)
    evidence, image_filter = evidence_of(chosen_from, setting.synthesizer), found.image_filter
    features, every = evidence.features, image_filter.scores(evidence)
    verdicts = [image_filter.judge(scores) for scores in every]
    fails = np.array([bool(set(verdict.reasons) - {INFLUENCE}) for verdict in verdicts])
    project = setting.space.projection.apply
    real, of_pool = (
        setting.space.moments(setting.real.train[target]),
        project(np.stack([m.features for m in pool])),
    )
    first_order = influence_at(real, frechet.moments(of_pool)).of(project(features))
    influence = image_filter.checks[INFLUENCE].influence.of(project(features))
    badness = {
        "random": np.random.default_rng(seed).random(len(chosen_from)),
        "discriminator": -_discriminator(setting, target, np.stack([m.pixels for m in chosen_from])),
        "confidence": -np.array([scores["confidence"] for scores in every]),
        "realism": -realism(setting.real.train[target], features),
        "first_order": first_order,
        "influence": influence,
        "default": np.where(fails, influence + 2 * np.abs(influence).max() + 1, influence),
    }
    return {name: np.argsort(values, kind="stable") for name, values in badness.items()}


def _discriminator(setting: Setting, target: str, pixels: np.ndarray) -> np.ndarray:
    model = setting.run.model_of(target)
    network, label = model.method.networks["discriminator"], torch.tensor(model.labels[target][:1])
    scores = []
    with torch.inference_mode():
        for first in range(0, len(pixels), 64):
            batch = imaging.to_float(torch.from_numpy(pixels[first : first + 64]))
            maps = network.adversarial(network.features(batch), label.expand(len(batch)))
            scores.append(maps.float().mean((1, 2)).numpy())
    return np.concatenate(scores)


def realism(real: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the realism score (n,): the largest ratio of a real image's reach to the distance from it.

    Real images with a reach above the median are left out, as there.
    """
    base = np.ascontiguousarray(real, np.float32)
    reach = np.sqrt(faiss.knn(base, base, _NEIGHBOURS + 1)[0][:, _NEIGHBOURS].clip(min=0))
    kept = reach <= np.median(reach)
    distances = np.sqrt(faiss.pairwise_distances(features.astype(np.float32), base[kept]).clip(min=1e-9))
    return (reach[kept][None] / distances).max(1)


def compare(setting: Setting, target: str, seed: int) -> list[dict[str, Any]]:
    """Return the figures of each way of choosing."""
    made = candidates(setting, target, seed)
    chosen_from, label = made[POOL:], setting.run.index.label(target)
    features = np.stack([m.features for m in chosen_from])
    agrees = classifier.predict(setting.judge, np.stack([m.pixels for m in chosen_from])) == label
    test, small = setting.test[target], setting.projection.apply(features)
    of_test, small_test = frechet.moments(setting.projection.apply(test)), setting.projection.apply(test)
    rows = []
    for share in SHARES:
        for way, order in orders(setting, target, made, seed, share).items():
            kept = order[: round(share * len(order))]
            kid = kernel_distance(small_test, small[kept])
            rows.append({
                "class": target, "seed": seed, "way": way, "share": share, "n": len(kept),
                "fd": frechet.frechet_distance(of_test, frechet.moments(small[kept])),
                "kid": kid.value, "kid_error": kid.error,
                "coverage": neighbourhoods(test, features[kept]).coverage,
                "agreement": float(agrees[kept].mean()),
            })  # fmt: skip
    return rows


def planted(setting: Setting, target: str, seed: int) -> list[dict[str, Any]]:
    """Return recall and precision of the reason that each planted kind is there to be found by."""
    rng = np.random.default_rng((seed, 7))
    made = candidates(setting, target, seed)
    found = fitted(setting, target, made[:POOL], seed)
    pixels = np.stack([m.pixels for m in made[POOL:]])
    confidences = np.array([m.confidence for m in made[POOL:]])
    order = rng.permutation(len(pixels))
    n = len(pixels) // 10
    places = {LOW_CONFIDENCE: order[: 2 * n], MEMORISED: order[2 * n : 3 * n], OUTLIER: order[3 * n : 4 * n]}
    others = [name for name in setting.run.index.classes if name != target]
    foreign = np.concatenate([setting.pixels("test", name, 200) for name in others])
    pixels[places[LOW_CONFIDENCE]] = foreign[rng.choice(len(foreign), 2 * n, replace=False)]
    train = setting.pixels("train", target)
    copies = train[rng.choice(len(train), n, replace=len(train) < n)]
    pixels[places[MEMORISED]] = [near_copy(image, kind % 3) for kind, image in enumerate(copies)]
    noise = rng.normal(0, 60, pixels[places[OUTLIER]].shape)
    pixels[places[OUTLIER]] = (pixels[places[OUTLIER]] + noise).clip(0, 255).astype(np.uint8)
    features = setting.extract(pixels)
    changed = np.concatenate(list(places.values()))
    confidences[changed] = setting.synthesizer.confidences_of([target], pixels[changed])[target]
    verdicts = judged(found.image_filter, evidence_from(features, pixels, confidences))
    test = setting.pixels("test", target)
    of_test = setting.synthesizer.confidences_of([target], test)[target]
    unseen = judged(found.image_filter, evidence_from(setting.test[target], test, of_test))
    agrees = classifier.predict(setting.judge, pixels) == setting.run.index.label(target)
    rows = []
    for reason, where in places.items():
        named = np.array([reason in verdict.reasons for verdict in verdicts])
        # Another kind of damage that is named too is no mistake: an image of another class may well be an outlier.
        hits = np.zeros(len(pixels), bool)
        hits[where] = True
        asked = hits.copy()
        asked[order[4 * n :]] = True
        alone = asked & ~hits
        rejected = np.array([not verdict.accepted for verdict in verdicts])
        right = hits[named & asked]
        rows.append({
            "class": target, "seed": seed, "planted": reason, "n": len(where),
            "recall": float(named[where].mean()), "precision": float(right.mean()) if len(right) else None,
            "rejected": float(rejected[where].mean()),
            "real_test": float(np.mean([reason in verdict.reasons for verdict in unseen])),
            "left_alone": float(named[alone].mean()), "agreement": float(agrees[alone].mean()),
            "agreement_of_named": float(agrees[alone & named].mean()) if (alone & named).any() else None,
        })  # fmt: skip
    return rows


def judged(image_filter: ImageFilter, evidence: Evidence) -> list[Verdict]:
    """Return the verdict on each image."""
    return [image_filter.judge(scores) for scores in image_filter.scores(evidence)]


def near_copy(image: np.ndarray, kind: int) -> np.ndarray:
    """Return a train image moved by a pixel, encoded again, or flipped."""
    if kind == 0:
        return np.roll(image, 1, axis=1)
    if kind == 1:
        encoded = imaging.encode(image, "jpg", 90)
        return np.asarray(Image.open(io.BytesIO(encoded))).reshape(image.shape)
    return image[:, ::-1]


def cost(work: Path, size_px: int) -> list[dict[str, Any]]:
    """Return, for some numbers of real train images, what scoring an image costs against making it."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    run = load_run(RunDirectory(generate.fitted(work, size_px)), None, device)
    synthesizer = Synthesizer(run, device, make_extractor(run.recipe.features, device))
    target, stream = run.plan.targets[0].name, run.candidate_stream("benchmark")
    drawn = [stream.draw(Slot(target, number), 0) for number in range(COST_IMAGES)]
    batches = batches_by_model(run, drawn, synthesizer.batch)
    sources = [synthesizer.load_sources(batch) for batch in batches]

    def make() -> list[list[Made]]:
        made = [synthesizer.make(batch, own) for batch, own in zip(batches, sources, strict=True)]
        for batch in made:
            for image in batch:
                imaging.encode(image.pixels, "jpg", 95)
        return made

    made = make()  # once before it counts: style codes
    filters = {n: _filter_of(n, target, made, synthesizer) for n in COST_REAL}
    pixels = [np.stack([image.pixels for image in batch]) for batch in made]
    evidence = [evidence_from(np.stack([m.features for m in b]), p) for b, p in zip(made, pixels, strict=True)]
    work_of: dict[str, Callable[[], Any]] = {"make": make, "texture": lambda: [texture(batch) for batch in pixels]}
    work_of |= {str(n): functools.partial(_judged, found, evidence) for n, found in filters.items()}
    seconds: dict[str, list[float]] = {key: [] for key in work_of}
    for _ in range(COST_ROUNDS):
        for key, what in work_of.items():
            seconds[key].append(_processor_seconds(what))
    middle = {key: float(np.median(of)) / COST_IMAGES * 1e6 for key, of in seconds.items()}
    return [
        {
            "size_px": size_px, "real_images": n, "images": COST_IMAGES, "batch": synthesizer.batch, "n": COST_ROUNDS,
            "make_us": middle["make"], "texture_us": middle["texture"], "score_us": middle[str(n)],
            "share": middle[str(n)] / middle["make"],
            "shares": [score / made for score, made in zip(seconds[str(n)], seconds["make"], strict=True)],
            "cores": os.cpu_count(), "torch": torch.__version__, "numpy": np.__version__,
        }
        for n in filters
    ]  # fmt: skip


def _filter_of(n: int, target: str, made: list[list[Made]], synthesizer: Synthesizer) -> ImageFilter:
    """Fit a filter to n real images and 100 held-out ones, with features drawn like those of made images."""
    pool, rng = evidence_of([image for batch in made for image in batch], synthesizer), np.random.default_rng(n)
    centre, spread = pool.features.mean(0), pool.features.std(0)

    def draw(*shape: int) -> np.ndarray:
        return (centre + spread * rng.standard_normal((*shape, len(centre)))).astype(np.float32)

    classes = {str(number): draw(100) + spread * rng.standard_normal(len(centre)) for number in range(9)}
    pool_measures = {name: {target: values} for name, values in pool.measured.items()}
    real = RealFeatures({**classes, target: draw(n)}, {target: draw(100)}, {target: draw(6, n)}, pool_measures)
    space = fit_space(real, synthesizer.run.recipe.filtering.dimensions, 200, 0)
    return fit_filter(
        target, real, space, pool, FilterOptions(limits={"keep": 0.8, "min_confidence": 0.0}), 0
    ).image_filter


def _judged(found: ImageFilter, evidence: list[Evidence]) -> list[Verdict]:
    """Judge images batch by batch, as `generate` does."""
    return [verdict for of_batch in evidence for verdict in judged(found, of_batch)]


def _processor_seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each class and share kept whether `default` is near the best way, and what it covers."""
    found = []
    for (name, share), ways in _cells(rows):
        fds = {way: _sample(own, "fd") for way, own in ways.items()}
        best = min(fds, key=lambda way: float(np.mean(fds[way])))
        mean, error = float(np.mean(fds[best])), _standard_error(fds[best])
        gained = _sample(ways["default"], "coverage") - _sample(ways["random"], "coverage")
        found.append({
            "class": name, "share": share, "n": len(gained), "best": best, "best_fd": mean, "best_fd_error": error,
            "default_fd": float(np.mean(fds["default"])), "random_fd": float(np.mean(fds["random"])),
            "within_one_error_of_best": bool(np.mean(fds["default"]) <= mean + error),
            "coverage_gained_on_random": float(np.mean(gained)), "coverage_gained_error": _standard_error(gained),
        })  # fmt: skip
    return found


def _cells(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, float], dict[str, list[dict[str, Any]]]]]:
    """Yield each class and share with its rows by way."""
    compared = [row for row in rows if "way" in row]
    for cell in sorted({(row["class"], row["share"]) for row in compared}):
        own = [row for row in compared if (row["class"], row["share"]) == cell]
        yield cell, {way: [row for row in own if row["way"] == way] for way in _ways(own)}


def _sample(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """A figure's values that are a sample: the means of several runs, or those of one run's seeds."""
    of_run: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["run"], row["seed"])):
        of_run.setdefault(row["run"], []).append(row[key])
    return np.array([np.mean(of) for of in of_run.values()] if len(of_run) > 1 else next(iter(of_run.values())))


def _standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of values, of one value none."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def report_json(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the verdicts as plain values, with what holds of all of them."""
    found = verdicts(rows)
    planted_rows = [row for row in rows if "planted" in row]
    return {
        "cells": found,
        "within_one_error_of_best": sum(cell["within_one_error_of_best"] for cell in found),
        "of_cells": len(found),
        "least_coverage_gained_on_random": min((c["coverage_gained_on_random"] for c in found), default=None),
        "least_recall": min((row["recall"] for row in planted_rows), default=None),
    }


def last_measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the runs that were measured together with that of the last row."""
    return [row for row in rows if row["runs"] == rows[-1]["runs"]]


def report(rows: list[dict[str, Any]]) -> str:
    """Return the rows as tables: means and standard errors over runs, or over the seeds of one."""
    every = _ways([row for row in rows if "way" in row])
    lines = ["| class | kept | " + " | ".join(every) + " |", "|---" * (2 + len(every)) + "|"]
    for (name, share), ways in _cells(rows):
        cells = []
        for own in ways.values():
            fd, kid, coverage, agreement = (_sample(own, key) for key in ("fd", "kid", "coverage", "agreement"))
            error = f" ± {_standard_error(fd):.0f}" if len(fd) > 1 else ""
            cells.append(f"{fd.mean():.0f}{error}, {kid.mean():.0f}, {coverage.mean():.2f}, {agreement.mean():.2f}")
        lines.append(f"| {name} | {share:.0%} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| class | kept | best | default within one standard error | coverage against random |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| {c['class']} | {c['share']:.0%} | {c['best']} | {'yes' if c['within_one_error_of_best'] else 'no'} "
        f"({c['default_fd']:.0f}, {c['best_fd']:.0f} ± {c['best_fd_error']:.0f}) "
        f"| {c['coverage_gained_on_random']:+.3f} ± {c['coverage_gained_error']:.3f} |"
        for c in verdicts(rows)
    ]
    lines += ["", "| class | planted | " + " | ".join(_PLANTED.values()) + " |", "|---" * (2 + len(_PLANTED)) + "|"]
    for name, reason in sorted({(row["class"], row["planted"]) for row in rows if "planted" in row}):
        own = [r for r in rows if r.get("planted") == reason and r["class"] == name]
        figures = ([r[key] for r in own if r[key] is not None] for key in _PLANTED)
        lines.append(f"| {name} | {reason} | " + " | ".join(map(_mean_and_range, figures)) + " |")
    return "\n".join(lines)


def _mean_and_range(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def _ways(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in rows))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the lines of every run, a line about the run first."""
    settings = [load(run, arguments.classifier) for run in arguments.run]
    runs = [setting.run.fingerprint["weights"][:12] for setting in settings]
    rows: list[dict[str, Any]] = []
    what = "planted" if arguments.planted else "compared"
    for run, setting in zip(runs, settings, strict=True):
        values = {"recipe": recipe_values(setting.run.recipe), "seed": setting.run.recipe.seed}
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        found: list[dict[str, Any]] = [{**values, "pool": POOL, "candidates": CANDIDATES, **machine}]
        for target, seed in itertools.product(setting.test, range(arguments.seeds)):
            found += (planted if arguments.planted else compare)(setting, target, seed)
            print(run, target, seed, flush=True)
        rows += [{"runs": sorted(runs), "what": what, "run": run, **row} for row in found]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", default=[], help="several: repeat it")
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--cost", action="store_true", help="what scoring costs against making an image")
    parser.add_argument("--work", type=Path, help="folder outside the repository, for --cost")
    parser.add_argument("--size", type=int, default=32, help="size of the images of --cost, in pixels")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    parser.add_argument("--json", action="store_true", help="print the report's verdicts as JSON")
    arguments = parser.parse_args()
    if arguments.report:
        text = (arguments.results or RESULTS).read_text(encoding="utf-8")
        rows = last_measured([json.loads(line) for line in text.splitlines()])
        print(json.dumps(report_json(rows)) if arguments.json else report(rows))
        return
    if arguments.cost:
        if not arguments.work:
            parser.error("--cost needs --work")
        rows = cost(arguments.work, arguments.size)
        _append(arguments.results or COST_RESULTS, rows)
        print("\n".join(map(json.dumps, rows)))
        return
    if not (arguments.run and arguments.classifier):
        parser.error("--run and --classifier are needed, or --report")
    # Of two threads of numpy that wait for each other beside other work, an eigenvalue takes 20 times as long.
    with torch_threads(1):
        rows = measure(arguments)
    _record(arguments.results or RESULTS, rows)
    print(report(rows))


def _record(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a measurement in the place of an earlier one of the same runs."""
    of_these = (rows[0]["runs"], rows[0]["what"])
    before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    kept = [row for row in before if (row["runs"], row["what"]) != of_these]
    storage.write_text(path, "".join(json.dumps(row) + "\n" for row in (*kept, *rows)))


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
