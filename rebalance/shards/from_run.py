"""`generate`: from a run to shards of synthetic images in the wanted numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rebalance import storage
from rebalance.config.requests import FilterChoice, OutputOptions
from rebalance.engines.processes import check_workers
from rebalance.errors import InputError, RefusedError
from rebalance.filtering import ClassCalibration, Criteria, calibrate
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.generation.synthesizer import Synthesizer
from rebalance.measures.features import FeatureExtractor
from rebalance.planning.balance import cap, resolve_balance
from rebalance.planning.tuned import read_tuned
from rebalance.runtime.devices import choose_device
from rebalance.runtime.ranks import Ranks, connected
from rebalance.runtime.threads import torch_threads
from rebalance.shards.criteria import asked_criteria
from rebalance.shards.filling import Limits
from rebalance.shards.generated import GeneratedShards, GenerationWork, extractor_of
from rebalance.shards.making import make_shards
from rebalance.shards.manifest import About
from rebalance.shards.names import ShardName
from rebalance.shards.output import Finished, OutputResult, OutputState
from rebalance.shards.ownership import claim
from rebalance.shards.records import ValidationShare
from rebalance.shards.request import GenerationRequest, OutputSettings, Selection
from rebalance.shards.totals import Totals
from rebalance.training import RunDirectory

TUNED = "tuned"
"""A balance: what `downstream` chose."""


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
    data: str | Path | None = None,
    output: OutputOptions = OutputOptions(),
    filtering: FilterChoice = FilterChoice(),
    workers: int = 1,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> GenerationResult:
    """Make the shards of a run; see `rebalance.api.generate`."""
    start = time.monotonic()
    _check_options(output, filtering, workers, overwrite)
    place = choose_device(device)
    loaded = load_run(RunDirectory(Path(run)), str(data) if data is not None else None, place)
    criteria = asked_criteria(filtering, loaded.recipe.filtering.checks)
    counts = _wanted(loaded, balance, max_multiple)
    named = bool(filtering.features.name)
    extractor = extractor_of(filtering.features, loaded, place) if criteria.any or named else None
    call = _Generation(loaded, counts, criteria, extractor, output, filtering, Path(out), place)
    with connected(place) as ranks, contextlib.ExitStack() as held:
        calibrations = call.calibrations(ranks)
        request = call.request(calibrations)
        _check_agreement(ranks, request)
        limits = Limits.of(calibrations)
        maker = call.maker(request, limits)
        state = OutputState(call.out, request, maker.names(), _range_of(maker.names(), output.shards))
        ranks.first_does(lambda: call.begin(request, overwrite, held))
        missing = state.missing(state.wanted[ranks.number :: ranks.count])
        make_shards(
            maker, call.work(request, limits), missing, workers=workers, threads=request.generation.threads,
            device=place, title="generate", progress=progress,
        )  # fmt: skip
        n_made = int(ranks.total(torch.tensor(len(missing))))
        draws = loaded.recipe.filtering.floor_draws
        finished = _shared(ranks, state, ranks.first_does(lambda: state.finish(about_run(loaded), calibrations, draws)))
    result = state.result(finished, calibrations, n_made, time.monotonic() - start)
    return GenerationResult(**vars(result), shortfall=Totals.of(finished.markers).shortfall)


@dataclass(frozen=True)
class _Generation:
    """One call of `generate`.

    Attributes:
        run: the run.
        counts: synthetic images of each class.
        criteria: what images and classes must pass.
        extractor: features in which they are judged; None where nothing asks for them.
        output: how the output is written.
        filtering: as the caller gave it.
        out: the output folder.
        device: where to compute.
    """

    run: LoadedRun
    counts: Mapping[str, int]
    criteria: Criteria
    extractor: FeatureExtractor | None
    output: OutputOptions
    filtering: FilterChoice
    out: Path
    device: torch.device

    def calibrations(self, ranks: Ranks) -> dict[str, ClassCalibration]:
        """Return the calibrations of the targets; the first process measures, the others read what it has stored."""
        measured = ranks.first_does(self._measured)
        return self._measured() if measured is None else measured

    def _measured(self) -> dict[str, ClassCalibration]:
        if self.extractor is None or not self.criteria.any:
            return {}
        synthesizer = Synthesizer(self.run, self.device, self.extractor)
        with torch_threads(self.run.recipe.generation.threads):
            return calibrate(self.run, synthesizer, self.criteria, tuple(self.counts), self.extractor, self.output.seed)

    def request(self, calibrations: Mapping[str, ClassCalibration]) -> GenerationRequest:
        """Return the request of the output."""
        extractor = self.extractor if self.criteria.any else None
        return GenerationRequest(
            settings=OutputSettings.of(self.output, self.device),
            selection=Selection.of(self.counts, calibrations, self.criteria, extractor),
            run=self.run.fingerprint,
            include_real=self.output.include_real,
            generation=self.run.recipe.generation,
        )

    def maker(self, request: GenerationRequest, limits: Limits) -> GeneratedShards:
        """Return what makes the shards in this process."""
        extractor = self.extractor if limits.real else None
        return GeneratedShards(self.run, request, limits, Synthesizer(self.run, self.device, extractor), self.out)

    def work(self, request: GenerationRequest, limits: Limits) -> GenerationWork:
        """Return what other processes need to make shards."""
        return GenerationWork(
            self.run.directory.path, str(self.run.index.root), request, limits, self.filtering.features, self.out,
            str(self.device),
        )  # fmt: skip

    def begin(self, request: GenerationRequest, overwrite: bool, held: contextlib.ExitStack) -> None:
        """Lock the output as long as `held` is open, make it this request's, and clear away what a kill left."""
        part = self.output.shards is not None
        held.enter_context(storage.locked(self.out, shared=part))
        claim(self.out, request, overwrite)
        if not part:
            storage.remove_partials(self.out)


def about_run(run: LoadedRun) -> About:
    """Return what an output of a run says of itself."""
    return About(
        classes=run.index.classes,
        method=run.recipe.method,
        origin=f"The synthetic images were made by the method `{run.recipe.method}`, trained on real train images.",
        validation=ValidationShare(run.recipe.data.val_fraction, run.recipe.seed),
        square=run.recipe.data.square,
        features=run.recipe.features,
    )


def _check_options(output: OutputOptions, filtering: FilterChoice, workers: int, overwrite: bool) -> None:
    check_workers(workers)
    if overwrite and output.shards is not None:
        raise InputError(
            "`overwrite` cannot go with `shards`: it would delete the other ranges",
            remedy="Empty `out` once, then start the ranges",
        )
    if output.square is not None:
        raise InputError("`square` is the run's; it can be chosen for `filter` only", value=output.square)
    if filtering.pool is not None:
        raise InputError(
            "`pool` is the run's; it can be chosen for `filter` only",
            value=filtering.pool,
            remedy="Fit the run with another filtering.pool_images",
        )


def _check_agreement(ranks: Ranks, request: GenerationRequest) -> None:
    if not ranks.agree(int(request.fingerprint[:8], 16)):
        raise RefusedError(
            "the processes would not make the same images: their devices, versions or data differ",
            remedy="Start them on machines of one kind, with the same data and packages",
        )


def _shared(ranks: Ranks, state: OutputState, finished: Finished | None) -> Finished:
    """Return what the first process found; the others learn its numbers and have the markers of their own shards."""
    numbers = [int(finished.complete), finished.n_shards] if finished else [0, 0]
    complete, n_shards = ranks.total(torch.tensor(numbers)).tolist()
    if finished is not None:
        return finished
    return Finished(bool(complete), n_shards, state.markers(state.wanted[ranks.number :: ranks.count]), {})


def _wanted(
    run: LoadedRun, balance: str | float | Mapping[str, int] | None, max_multiple: float | None
) -> dict[str, int]:
    """Return synthetic images per class: the plan's, or those of another balance over the fitted targets."""
    targets = run.plan.targets
    if balance is None:
        counts = {target.name: target.n_synthetic for target in targets}
        if max_multiple is not None:
            counts = cap(counts, {target.name: target.n_real for target in targets}, max_multiple)
        return counts
    if balance == TUNED:
        balance = _tuned(run)
    counts = resolve_balance(run.index.counts("train"), balance, max_multiple)
    fitted = {target.name for target in targets}
    if not counts.keys() <= fitted:
        not_fitted = ", ".join(repr(name) for name in counts if name not in fitted)
        raise InputError(
            f"`balance` asks for classes that were not fitted: {not_fitted}",
            allowed=", ".join(map(repr, sorted(fitted))),
            remedy="Fit a run for them, or name only fitted classes in a mapping",
        )
    return counts


def _tuned(run: LoadedRun) -> dict[str, int]:
    """Return the final counts that a downstream study of this run chose."""
    path = run.directory.tuned_path
    if not storage.is_file(path):
        raise InputError(
            "`balance` is tuned, and no downstream study of this run has chosen one",
            remedy="Run `rebalance downstream` with `run` first",
        )
    balance = read_tuned(path).balance
    if not balance:
        raise InputError(
            "`balance` is tuned, and no number of synthetic images was clearly better for the classifier on val"
        )
    return balance


def _range_of(names: list[ShardName], shards: tuple[int, int] | None) -> list[ShardName]:
    """Return the shards of a range A to B - 1, all without one."""
    if shards is None:
        return names
    first, last = shards
    if not 0 <= first < last <= len(names):
        raise InputError("`shards`", value=f"{first}:{last}", allowed=f"A:B with 0 <= A < B <= {len(names)}")
    return names[first:last]
