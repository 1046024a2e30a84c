"""`filter`: the filter of `generate` over images that anything else has made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rebalance import files, metrics
from rebalance.config import (
    DataOptions,
    FeatureOptions,
    FilteringOptions,
    GenerationOptions,
    PlanOptions,
    Recipe,
)
from rebalance.config.options import check, to_mapping
from rebalance.devices import choose_device
from rebalance.errors import InputError
from rebalance.features import FeatureExtractor, choose_extractor
from rebalance.filtering import (
    ClassCalibration,
    Evidence,
    FilterOptions,
    Gates,
    RealFeatures,
    Space,
    calibrate_class,
    fit_space,
    read_calibrations,
    real_evidence,
    write_calibrations,
)
from rebalance.filtering.archive import names_of
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.shards.claim import CALIBRATION, claim, is_done, refuse_others
from rebalance.shards.given import GivenImages, given_images
from rebalance.shards.manifest import About
from rebalance.shards.output import OutputResult, common_results, finish
from rebalance.shards.request import FilterRequest, common_parts
from rebalance.shards.sift import Looker, Sifter, evidence_on
from rebalance.shards.workers import torch_threads
from rebalance.training import encoder_of
from rebalance.views import RealImages, View, check_known, feature_options, view_for

_CALIBRATION_FILE = f"{CALIBRATION}/calibration.json"
_AFTER_MEASURING = ("counts", "withheld", "calibration")
"""Parts of a request that are known only when the classes are calibrated."""


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
    keep: float | None = None,
    min_confidence: float | None = None,
    max_similarity: float | None = None,
    max_fid: str | float | None = None,
    max_kid: str | float | None = None,
    pool: int | None = None,
    features: str | None = None,
    run: str | Path | None = None,
    weights: str | Path | None = None,
    input_px: int | None = None,
    square: str | None = None,
    shard_size: int = 1000,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> FilterResult:
    """Write the images that pass the filter to shards; the same call again makes only what is missing.

    Args:
        images: an image folder, manifest or shards, or a complete output of `generate` or `filter`.
        real: the real data set, whose train and val images the filter is calibrated on.
        out: folder of the shards.
        keep: share of the pool, after the other checks, whose influence is allowed, instead of a calibrated one.
        min_confidence: least probability of its class that an image must have, instead of a calibrated one.
        max_similarity: largest cosine to a real train image, instead of a calibrated one.
        max_fid: limit on each class's Fréchet distance, absolute or a multiple of its floor ("3x").
        max_kid: limit on each class's kernel distance, likewise.
        pool: images of a class that it is calibrated on, at most.
        features: "efficientnet", "inception", "encoder" (of `run`) or "module:attribute"; by default those of the run
            that made the images, else efficientnet.
        run: run directory whose encoder is asked.
        weights: Inception weights.
        input_px: side to which images are resized for efficientnet; by default the run's, else 224.
        square: how images become square; by default the run's way, else "crop".
        shard_size: images that a shard is made of; it holds those that pass.
        seed: seed of all draws.
        device: "auto", "cpu" or "cuda".
        overwrite: delete what `out` holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: `out` holds shards of another request, or another process works on it.
    """
    start, target, place = time.monotonic(), Path(out), choose_device(device)
    checks = FilterOptions(FilteringOptions().checks, keep, min_confidence, max_similarity)
    gates = Gates.asked(checks, max_fid, max_kid)
    options = FilteringOptions() if pool is None else _filtering_options(pool)
    _check(shard_size, seed, square)
    for name, place_of in (("IMAGES", Path(images)), ("DATA", Path(real))):
        _check_outside(target, place_of, name)
    given = given_images(Path(images), seed, progress)
    held_out = given.manifest.get("validation", {"fraction": Recipe().data.val_fraction, "seed": Recipe().seed})
    data = carve_validation(build_index(Path(real), progress=progress), **held_out)
    check_known(given.rows, data)
    look = feature_options(given.manifest, features, input_px, weights)
    extractor = choose_extractor(features, look, place, lambda: encoder_of(run, place))
    view = view_for(given.largest_px, given.manifest, square, given.encoding)
    work = _Filtering(given, data, view, extractor, gates, options, seed, shard_size, place)
    with files.locked(target), threadpool_limits(work.threads), torch_threads(work.threads):
        parts = work.carry_out(target, about_filter(given, data, view, look, held_out), overwrite, progress)
    return FilterResult(
        **parts,
        seconds=round(time.monotonic() - start, 1),
        given={name: len(given.rows[name]) for name in work.targets},
        bad=dict(given.bad),
        file_format=given.file_format,
        original=given.original,
    )


def _filtering_options(pool: int) -> FilteringOptions:
    rule = {field.name: field.metadata for field in fields(FilteringOptions)}["pool_images"]
    check("--pool", rule, pool)
    return FilteringOptions(pool_images=pool)


def _check(shard_size: int, seed: int, square: str | None) -> None:
    for option, value, least, most in (("--shard-size", shard_size, 1, 10_000_000), ("--seed", seed, 0, 2**63 - 1)):
        if not least <= value <= most:
            raise InputError(option, value=value, allowed=f"{least} to {most}")
    if square is not None:
        DataOptions(square=square)


def _check_outside(out: Path, path: Path, what: str) -> None:
    """Refuse an output inside a folder that is read, whose next reading would find its shards, and the reverse."""
    if path.resolve().is_relative_to(out.resolve()) and path.resolve() != out.resolve():
        raise InputError(f"{what} lies inside --out", value=str(path), remedy="Choose another --out")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"--out lies inside {what}, where its shards would be read as images",
            value=str(out),
            remedy=f"Choose a folder outside {what}",
        )


def about_filter(
    given: GivenImages, data: ImageIndex, view: View, look: FeatureOptions, held_out: Mapping[str, Any]
) -> About:
    """Return what an output says of the images that it is of."""
    return About(
        classes=data.classes,
        method="filter",
        origin="Synthetic images were made by another generator and have passed a filter.",
        validation=held_out,
        square=view.square,
        features={key: getattr(look, key) for key in ("extractor", "input_px", "layer")},
    )


@dataclass(frozen=True)
class _Filtering:
    """Everything that decides which images pass."""

    given: GivenImages
    data: ImageIndex
    view: View
    extractor: FeatureExtractor
    gates: Gates
    options: FilteringOptions
    seed: int
    shard_size: int
    device: torch.device

    @property
    def threads(self) -> int:
        """CPU threads: a fixed number, because results depend on it."""
        return GenerationOptions().threads

    @property
    def looker(self) -> Looker:
        return Looker(self.given, self.view, self.extractor)

    @property
    def targets(self) -> tuple[str, ...]:
        """Classes that have images, in label order."""
        return tuple(name for name in self.data.classes if name in self.given.rows)

    def carry_out(self, out: Path, about: About, overwrite: bool, progress: bool) -> dict[str, Any]:
        """Calibrate, claim `out`, make the shards that are missing, and finish; return what came of it."""
        asked, path = self.request({}), out / _CALIBRATION_FILE
        if not overwrite:
            refuse_others(out, {key: v for key, v in asked.to_json().items() if key not in _AFTER_MEASURING})
        # What a user's function gives may have changed under the same name.
        stored = read_calibrations(path, asked.fingerprint) if self.extractor.version else None
        calibrations = self._measured() if stored is None else stored
        request = self.request(calibrations)
        claim(out, request, overwrite)
        files.remove_partials(out)
        if stored is None or overwrite:
            calibrations = write_calibrations(path, asked.fingerprint, self.extractor.name, self.seed, calibrations)
        sifter = Sifter(self.looker, self.data.classes, request, calibrations, out)
        names, about = sifter.names(), replace(about, beside=tuple(f"{CALIBRATION}/{p.name}" for p in names_of(path)))
        missing = [name for name in names if not is_done(out, name, request)]
        sifter.make_all(missing, progress)
        finished = finish(out, about, request, calibrations, names, self.options.floor_draws)
        return common_results(out, request, calibrations, finished, n_shards=len(names), made=len(missing))

    def request(self, calibrations: Mapping[str, ClassCalibration]) -> FilterRequest:
        """Return the request; what is asked before anything is calibrated, without calibrations."""
        given = self.given
        counts = {name: len(given.rows[name]) for name in self.targets}
        return FilterRequest(
            images=given.identity(),
            original=given.original,
            real=self.data.fingerprint,
            view={**asdict(self.view), "encoding": list(self.view.encoding or ())},
            filtering=to_mapping(self.options),
            threads=self.threads,
            **common_parts(
                counts, calibrations, self.gates, self.extractor, self.shard_size, given.file_format, given.quality,
                self.seed, self.device,
            ),
        )  # fmt: skip

    def _measured(self) -> dict[str, ClassCalibration]:
        """Calibrate every class that has images."""
        view = RealImages(self.data, self.view, self.extractor)
        real = real_evidence(view, self.gates, self.targets, Recipe().seed)
        space = fit_space(real, self.options.dimensions, PlanOptions().feature_images, self.seed)
        return {name: self._calibrated(name, real, space) for name in self.targets}

    def _calibrated(self, name: str, real: RealFeatures, space: Space) -> ClassCalibration:
        rows = metrics.at_most(self.given.rows[name], self.options.pool_images, self.seed, self.data.label(name))
        with ThreadPoolExecutor() as threads:
            parts = [evidence_on(batch) for batch in self.looker.look(rows, threads)]
        pool = Evidence(np.concatenate([p.features for p in parts]), np.concatenate([p.texture for p in parts]))
        found = calibrate_class(
            name, real, space, pool, self.gates, floor_draws=self.options.floor_draws, seed=self.seed
        )
        if self.gates.max_fid or self.gates.max_kid:
            return found
        return replace(found, withheld=False, reason="")  # here, what few images pass are what there is
