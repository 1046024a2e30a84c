"""`filter`: the filter of `generate` over images that anything else has made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from rebalance import storage
from rebalance.config import DataOptions, FeatureOptions, FilteringOptions, GenerationOptions, PlanOptions
from rebalance.config.requests import FeatureChoice, FilterChoice, OutputOptions
from rebalance.engines.processes import check_workers
from rebalance.errors import InputError
from rebalance.filtering import (
    ClassCalibration,
    Criteria,
    RealFeatures,
    Space,
    calibrate_class,
    calibration_files,
    concatenated,
    fit_space,
    read_calibrations,
    real_evidence,
    write_calibrations,
)
from rebalance.filtering.real_images import RealImages
from rebalance.imaging.views import View
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.measures.features import FeatureExtractor
from rebalance.measures.sets import at_most
from rebalance.runtime.devices import choose_device
from rebalance.runtime.threads import torch_threads
from rebalance.shards.comparison import check_known, comparison_view, feature_options
from rebalance.shards.criteria import asked_criteria
from rebalance.shards.filling import Limits
from rebalance.shards.filtered import FilteredShards, FilterWork, ViewedImages, evidence_on, filter_extractor
from rebalance.shards.given import GivenImages, given_images
from rebalance.shards.making import make_shards
from rebalance.shards.manifest import About
from rebalance.shards.names import CALIBRATION
from rebalance.shards.output import OutputResult, OutputState
from rebalance.shards.ownership import claim, refuse_others
from rebalance.shards.records import FILTERED, ValidationShare
from rebalance.shards.request import FilterRequest, OutputSettings, Selection

_CALIBRATION_FILE = f"{CALIBRATION}/calibration.json"

_AFTER_MEASURING = ("counts", "withheld", "calibration")
"""Keys of a request that are known only when the classes are calibrated."""

# A fixed number, because results depend on it; workers are how cores are used.
_THREADS = GenerationOptions.threads


@dataclass(frozen=True)
class FilterResult(OutputResult):
    """What a filtering came to.

    Attributes:
        given: images of each class that could be used.
        bad: files that could not, by reason.
        file_format: format of the images in the shards.
        original: whether these are the images' own bytes; else they were encoded again.
    """

    given: dict[str, int]
    bad: dict[str, int]
    file_format: str
    original: bool

    @property
    def exit_code(self) -> int:
        """3 when a class is withheld or nothing of one was kept, else 0."""
        return 3 if self.withheld or not all(self.counts.values()) else 0


def filter(
    images: str | Path,
    real: str | Path,
    out: str | Path,
    *,
    output: OutputOptions = OutputOptions(),
    filtering: FilterChoice = FilterChoice(),
    workers: int = 1,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> FilterResult:
    """Write the images that pass the filter to shards; see `rebalance.api.filter`."""
    start, target, place = time.monotonic(), Path(out), choose_device(device)
    check_workers(workers)
    _check_output(output)
    options = _filtering_options(filtering)
    criteria = asked_criteria(filtering, options.checks)
    for parameter, path in (("images", Path(images)), ("real", Path(real))):
        _check_outside(target, path, parameter)
    given = given_images(Path(images), output.seed, progress)
    held_out = given.manifest.validation if given.manifest else ValidationShare(DataOptions.val_fraction, 0)
    index = build_index(Path(real), progress=progress, parameter="real")
    data = carve_validation(index, held_out.fraction, held_out.seed)
    check_known(given.rows, data)
    features = feature_options(given.manifest, filtering.features)
    extractor = filter_extractor(filtering.features, features, place)
    view = comparison_view(given.largest_px, given.manifest, output.square, given.encoding)
    call = _Filtering(given, data, view, extractor, criteria, options, output, target, place)
    about = call.about(held_out, features)
    with storage.locked(target), threadpool_limits(_THREADS), torch_threads(_THREADS):
        calibrations, request = call.begin(overwrite)
        limits = Limits.of(calibrations)
        maker = FilteredShards(call.images, data.classes, request, limits, target)
        state = OutputState(target, request, maker.names(), maker.names())
        missing = state.missing(state.names)
        work = call.work(request, limits, filtering.features, features)
        make_shards(
            maker, work, missing, workers=workers, threads=_THREADS, device=place, title="filter", progress=progress
        )
        beside = tuple(f"{CALIBRATION}/{path.name}" for path in calibration_files(target / _CALIBRATION_FILE))
        finished = state.finish(replace(about, beside=beside), calibrations, options.floor_draws)
    result = state.result(finished, calibrations, len(missing), time.monotonic() - start)
    return FilterResult(
        **vars(result),
        given={name: len(given.rows[name]) for name in call.targets},
        bad=dict(given.bad),
        file_format=given.file_format,
        original=given.original,
    )


def _check_output(output: OutputOptions) -> None:
    if output.include_real or output.shards is not None:
        parameter = "include_real" if output.include_real else "shards"
        raise InputError(f"`{parameter}` is for `generate` only", value=getattr(output, parameter))


def _filtering_options(choice: FilterChoice) -> FilteringOptions:
    if choice.pool is None:
        return FilteringOptions()
    least = FilteringOptions.__dataclass_fields__["pool_images"].metadata["at_least"]
    if choice.pool < least:
        raise InputError("`pool` is too small", value=choice.pool, allowed=f"{least} or more")
    return FilteringOptions(pool_images=choice.pool)


def _check_outside(out: Path, path: Path, parameter: str) -> None:
    """Refuse an output inside a folder that is read, whose next reading would find its shards, and the reverse."""
    inside_out, inside_path = storage.is_inside(path, out), storage.is_inside(out, path)
    if inside_out and not inside_path:
        raise InputError(f"`{parameter}` lies inside `out`", value=str(path), remedy="Choose another `out`")
    if storage.is_folder(path) and inside_path:
        raise InputError(
            f"`out` lies inside `{parameter}`, where its shards would be read as images",
            value=str(out),
            remedy=f"Choose a folder outside `{parameter}`",
        )


@dataclass(frozen=True)
class _Filtering:
    """One call of `filter`.

    Attributes:
        given: the images.
        data: the real data set.
        view: in which all images are compared.
        extractor: features in which they are judged.
        criteria: what images and classes must pass.
        options: how classes are calibrated.
        output: how the output is written.
        out: the output folder.
        device: where to compute.
    """

    given: GivenImages
    data: ImageIndex
    view: View
    extractor: FeatureExtractor
    criteria: Criteria
    options: FilteringOptions
    output: OutputOptions
    out: Path
    device: torch.device

    @property
    def images(self) -> ViewedImages:
        """The images in their view, with their features."""
        return ViewedImages(self.given, self.view, self.extractor)

    @property
    def targets(self) -> tuple[str, ...]:
        """Classes that have images, in label order."""
        return tuple(name for name in self.data.classes if name in self.given.rows)

    def about(self, held_out: ValidationShare, features: FeatureOptions) -> About:
        """Return what the output says of itself."""
        return About(
            classes=self.data.classes,
            method=FILTERED,
            origin="The synthetic images were made by another generator and have passed a filter.",
            validation=held_out,
            square=self.view.square,
            features=features,
        )

    def begin(self, overwrite: bool) -> tuple[dict[str, ClassCalibration], FilterRequest]:
        """Calibrate the classes, or read what an earlier call has measured, and make the output this request's."""
        asked, path = self.request({}), self.out / _CALIBRATION_FILE
        if not overwrite:
            refuse_others(self.out, asked, _AFTER_MEASURING)
        # What a user's function gives may have changed under the same name.
        stored = read_calibrations(path, asked.fingerprint) if self.extractor.version else None
        calibrations = self._measured() if stored is None else stored
        request = self.request(calibrations)
        claim(self.out, request, overwrite)
        storage.remove_partials(self.out)
        if stored is None or overwrite:
            calibrations = write_calibrations(
                path, asked.fingerprint, self.extractor.name, self.output.seed, calibrations
            )
        return calibrations, request

    def request(self, calibrations: Mapping[str, ClassCalibration]) -> FilterRequest:
        """Return the request; what is asked before anything is calibrated, without calibrations."""
        counts = {name: len(self.given.rows[name]) for name in self.targets}
        quality = self.given.quality or self.output.quality
        encoded = replace(self.output, file_format=self.given.file_format, quality=quality)
        return FilterRequest(
            settings=OutputSettings.of(encoded, self.device),
            selection=Selection.of(counts, calibrations, self.criteria, self.extractor),
            images=self.given.identity(),
            original=self.given.original,
            real=self.data.fingerprint,
            view=self.view,
            filtering=self.options,
            threads=_THREADS,
        )

    def work(
        self, request: FilterRequest, limits: Limits, features: FeatureChoice, options: FeatureOptions
    ) -> FilterWork:
        """Return what other processes need to make shards."""
        return FilterWork(
            self.given.without_caches(), self.data.classes, self.view, features, options, request, limits, self.out,
            str(self.device),
        )  # fmt: skip

    def _measured(self) -> dict[str, ClassCalibration]:
        """Calibrate every class that has images."""
        view = RealImages(self.data, self.view, self.extractor)
        real = real_evidence(view, self.criteria, self.targets, 0)
        space = fit_space(real, self.options.dimensions, PlanOptions.feature_images, self.output.seed)
        return {name: self._calibrated(name, real, space) for name in self.targets}

    def _calibrated(self, name: str, real: RealFeatures, space: Space) -> ClassCalibration:
        seed = self.output.seed
        rows = at_most(self.given.rows[name], self.options.pool_images, seed, self.data.label(name))
        with ThreadPoolExecutor() as threads:
            pool = concatenated([evidence_on(batch) for batch in self.images.batches(rows, threads)])
        draws = self.options.floor_draws
        calibration = calibrate_class(name, real, space, pool, self.criteria, floor_draws=draws, seed=seed)
        if self.criteria.max_fid or self.criteria.max_kid:
            return calibration
        return replace(calibration, withheld=False, reason="")  # without a limit, what few images pass is kept
