"""`generate`: from a run to shards of synthetic images in the wanted numbers."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rebalance import files
from rebalance.config import Recipe
from rebalance.devices import choose_device, cpu_count
from rebalance.errors import InputError, RefusedError
from rebalance.features import FeatureExtractor
from rebalance.filtering import (
    CHECKS,
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    ClassCalibration,
    FilterOptions,
    Gates,
    calibrate,
    filters_of,
    yardsticks_of,
)
from rebalance.generation import LoadedRun, Synthesizer, load_run
from rebalance.planning import Plan, cap, resolve_balance
from rebalance.ranks import joined
from rebalance.shards.claim import claim, is_done, is_marked
from rebalance.shards.make import ShardMaker, ShardName
from rebalance.shards.manifest import About
from rebalance.shards.output import Finished, OutputResult, common_results, finish, tally_of
from rebalance.shards.progress import counting
from rebalance.shards.request import REAL, GenerationRequest, make_request
from rebalance.shards.workers import Job, Look, make_here, make_in_processes, torch_threads
from rebalance.training import RunDirectory

FORMATS = ("jpg", "png", "webp")
TUNED = "tuned"


@dataclass(frozen=True)
class GenerationResult(OutputResult):
    """What a generation came to.

    Attributes:
        shortfall: slots of each class that no candidate could fill.
    """

    shortfall: dict[str, int]

    @property
    def exit_code(self) -> int:
        """3 when images or classes are missing, else 0."""
        return 3 if self.shortfall or self.withheld else 0


def generate(
    run: str | Path,
    out: str | Path,
    *,
    balance: str | float | Mapping[str, int] | None = None,
    max_multiple: float | None = None,
    shard_size: int = 1000,
    file_format: str = "jpg",
    quality: int = 95,
    seed: int = 0,
    workers: int = 1,
    shards: tuple[int, int] | None = None,
    include_real: bool = False,
    filter_images: bool = True,
    keep: float | None = None,
    min_confidence: float | None = None,
    max_similarity: float | None = None,
    max_fid: str | float | None = None,
    max_kid: str | float | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> GenerationResult:
    """Make the shards of a run; the same call again makes only what is missing.

    Processes that `torchrun` started share the shards among them.

    Args:
        run: a finished run directory.
        out: folder of the shards.
        balance: other amounts than the run's plan, for targets that were fitted; "tuned" is what `downstream` chose.
        max_multiple: cap on synthetic images of a class, times its real ones.
        shard_size: images of a shard.
        file_format: "jpg", "png" or "webp".
        quality: 1 to 100, for jpg and webp.
        seed: seed of all draws.
        workers: processes; 0: as many as there are CPUs, one on a GPU. It does not change a byte. More than one needs
            the caller's script to be importable (`if __name__ == "__main__"`).
        shards: make only shards A to B - 1 of the output, as for a scheduler.
        include_real: add the real train images of all classes, resized and encoded alike.
        filter_images: ask the checks that the recipe names (`filtering.checks`); else only those whose limit is given.
        keep: share of the pool, after the other checks, whose influence is allowed, instead of a calibrated one.
        min_confidence: least probability of its class that an image must have, instead of a calibrated one.
        max_similarity: largest cosine to a real train image, instead of a calibrated one.
        max_fid: limit on each class's Fréchet distance, absolute or a multiple of its floor ("3x").
        max_kid: limit on each class's kernel distance, likewise.
        features: "efficientnet", "inception", "encoder" (the run's own) or "module:attribute", instead of the recipe's.
        weights: Inception weights, where the features are Inception's.
        data: where the data set is now, if it has moved since the fit.
        device: "auto", "cpu" or "cuda".
        overwrite: delete what `out` holds and start again.
        progress: show a progress bar on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: `out` holds shards of another request, or another process works on it.
        DamagedError: the run is damaged.
    """
    start = time.monotonic()
    _check_options(shard_size, file_format, quality, workers, seed)
    if overwrite and shards is not None:
        raise InputError(
            "--overwrite cannot go with --shards: it would delete the other ranges",
            remedy="Empty OUT once, then start the ranges",
        )
    place, directory, target = choose_device(device), RunDirectory(Path(run)), Path(out)
    loaded = load_run(directory, str(data) if data is not None else None, place)
    gates = Gates.asked(_checks(loaded.recipe, filter_images, keep, min_confidence, max_similarity), max_fid, max_kid)
    counts = _wanted(loaded, balance, max_multiple)
    look = Look(features, str(weights) if weights else None)
    extractor = look.extractor(loaded, place) if gates.closed or features else None
    with joined(place) as ranks, contextlib.ExitStack() as held:
        # The first measures, the others read what it has stored.
        measure = functools.partial(_calibrations, loaded, gates, tuple(counts), seed, place, extractor)
        calibrations = ranks.first_does(measure)
        if calibrations is None:
            calibrations = measure()
        request = make_request(
            loaded, counts, calibrations, gates, extractor if gates.closed else None, shard_size=shard_size,
            file_format=file_format, quality=quality, seed=seed, include_real=include_real, device=place,
        )  # fmt: skip
        if not ranks.agree(int(request.fingerprint[:8], 16)):
            raise RefusedError(
                "the processes would not make the same images: their devices, versions or data differ",
                remedy="Start them on machines of one kind, with the same data and packages",
            )
        filters, yardsticks = (of(list(calibrations.values())) for of in (filters_of, yardsticks_of))
        maker = ShardMaker(loaded, request, filters, yardsticks, extractor if yardsticks else None, target, place)
        wanted = _chosen(maker, shards)
        ranks.first_does(lambda: _begin(target, request, shards, overwrite, held))
        missing = [name for name in wanted[ranks.number :: ranks.count] if not is_done(target, name, request)]
        job = Job(directory.path, str(loaded.index.root), request, filters, yardsticks, look, target, str(place))
        _make_all(maker, job, missing, workers, progress)
        n_made = int(ranks.total(torch.tensor(len(missing))))
        names, draws = maker.names(), loaded.recipe.filtering.floor_draws
        finished = ranks.first_does(lambda: finish(target, about_run(loaded), request, calibrations, names, draws))
        if finished is None:
            finished = Finished(tuple(name for name in names if is_marked(target, name)), {})
    parts = common_results(target, request, calibrations, finished, n_shards=len(names), made=n_made)
    shortfall, seconds = tally_of(target, finished.done).shortfall, round(time.monotonic() - start, 1)
    return GenerationResult(**parts, seconds=seconds, shortfall=shortfall)


def _checks(
    recipe: Recipe, filter_images: bool, keep: float | None, min_confidence: float | None, max_similarity: float | None
) -> FilterOptions:
    """Return the recipe's checks where images are filtered, and those whose limit is given."""
    given = {LOW_CONFIDENCE: min_confidence, MEMORISED: max_similarity, INFLUENCE: keep}
    asked = recipe.filtering.checks if filter_images else ()
    checks = tuple(check for check in CHECKS if check in asked or given.get(check) is not None)
    return FilterOptions(checks, keep, min_confidence, max_similarity)


def _begin(
    out: Path, request: GenerationRequest, shards: tuple[int, int] | None, overwrite: bool, held: contextlib.ExitStack
) -> None:
    """Lock `out` as long as `held` is open, make it this request's, and clear away what a kill left."""
    held.enter_context(files.locked(out, shared=shards is not None))
    claim(out, request, overwrite)
    if shards is None:
        files.remove_partials(out)


def about_run(run: LoadedRun) -> About:
    """Return what an output says of the run that it is of."""
    return About(
        classes=run.index.classes,
        method=run.recipe.method,
        origin="Synthetic images are translations of real train images.",
        validation={"fraction": run.recipe.data.val_fraction, "seed": run.recipe.seed},
        square=run.recipe.data.square,
        features={key: getattr(run.recipe.features, key) for key in ("extractor", "input_px", "layer")},
    )


def _check_options(shard_size: int, file_format: str, quality: int, workers: int, seed: int) -> None:
    if file_format not in FORMATS:
        raise InputError("--format is unknown", value=file_format, allowed=", ".join(FORMATS))
    limits = {
        "--shard-size": (shard_size, 1, 10_000_000),
        "--quality": (quality, 1, 100),
        "--workers": (workers, 0, 1024),
        "--seed": (seed, 0, 2**63 - 1),
    }
    for option, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise InputError(option, value=value, allowed=f"{least} to {most}")


def _wanted(
    run: LoadedRun, balance: str | float | Mapping[str, int] | None, max_multiple: float | None
) -> dict[str, int]:
    """Return synthetic images per class: the plan's, or those of another balance over the fitted targets."""
    plan: Plan = run.plan
    if balance is None:
        counts = {target.name: target.n_synthetic for target in plan.targets}
        if max_multiple is not None:
            counts = cap(counts, {target.name: target.n_real for target in plan.targets}, max_multiple)
        return counts
    if balance == TUNED:
        balance = _tuned(run)
    counts = resolve_balance(run.index.counts("train"), balance, max_multiple)
    fitted = {target.name for target in plan.targets}
    if not counts.keys() <= fitted:
        strange = ", ".join(repr(name) for name in counts if name not in fitted)
        raise InputError(
            f"--balance asks for classes that were not fitted: {strange}",
            allowed=", ".join(map(repr, sorted(fitted))),
            remedy="Fit a run for them, or name only fitted classes in a mapping",
        )
    return counts


def _tuned(run: LoadedRun) -> dict[str, int]:
    """Return the final counts that a downstream study of this run chose."""
    path = run.directory.tuned_path
    if not path.is_file():
        raise InputError(
            "--balance tuned: no downstream study of this run has chosen a balance",
            remedy="Run `rebalance downstream DATA OUT --run RUN` first",
        )
    balance = files.read_sealed_json(path)["balance"]
    if not balance:
        raise InputError("--balance tuned: no number of synthetic images was clearly better for the classifier on val")
    return balance


def _calibrations(
    run: LoadedRun,
    gates: Gates,
    targets: tuple[str, ...],
    seed: int,
    device: torch.device,
    extractor: FeatureExtractor | None,
) -> dict[str, ClassCalibration]:
    if extractor is None or not gates.closed:
        return {}
    synthesizer = Synthesizer(run, device, extractor)
    with torch_threads(run.recipe.generation.threads):
        return calibrate(run, synthesizer, gates, targets, extractor, seed)


def _chosen(maker: ShardMaker, shards: tuple[int, int] | None) -> list[ShardName]:
    names = maker.names()
    if shards is None:
        return names
    first, last = shards
    if not 0 <= first < last <= len(names):
        raise InputError("--shards", value=f"{first}:{last}", allowed=f"A:B with 0 <= A < B <= {len(names)}")
    return names[first:last]


def _make_all(maker: ShardMaker, job: Job, missing: Sequence[ShardName], workers: int, progress: bool) -> None:
    if not missing:
        return
    if workers == 0:
        workers = cpu_count() if job.device == "cpu" else 1
    workers = min(workers, len(missing))
    threads = maker.run.recipe.generation.threads
    with counting("generate", sum(_n_images(maker, name) for name in missing), progress) as count:
        if workers == 1:
            make_here(maker, missing, count)
        else:
            make_in_processes(job, missing, workers, threads, count)


def _n_images(maker: ShardMaker, name: ShardName) -> int:
    total = len(maker.real_images) if name.kind == REAL else sum(maker.request.counts.values())
    return min(maker.request.shard_size, total - name.number * maker.request.shard_size)
