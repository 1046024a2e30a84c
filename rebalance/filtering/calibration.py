"""Calibrating a run: real features, a pool of candidates of each target, and what was found, kept with the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from rebalance import files
from rebalance.class_probe import most_of_a_class
from rebalance.errors import DamagedError
from rebalance.features import FeatureExtractor
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class, filters_of
from rebalance.filtering.evidence import Evidence, RealFeatures, near_copies, texture
from rebalance.filtering.fitting import fit_space
from rebalance.filtering.gates import Gates
from rebalance.filtering.image_filter import MEMORISED
from rebalance.filtering.store import load_filters, save_filters
from rebalance.generation import LoadedRun, Made, Slot, Synthesizer, batches_by_model, candidate_stream
from rebalance.planning import real_features

logger = logging.getLogger(__name__)


def calibrate(
    run: LoadedRun,
    synthesizer: Synthesizer,
    gates: Gates,
    targets: tuple[str, ...],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, ClassCalibration]:
    """Calibrate every target on a seeded pool of candidates; the result is stored in the run and read back next time.

    Args:
        run: the run.
        synthesizer: makes the pool, with features.
        gates: what is asked.
        targets: classes to calibrate.
        extractor: the features.
        seed: the generation's seed.
    """
    options = run.recipe.filtering
    key = files.sha256_bytes(
        files.canonical_json(
            [
                run.fingerprint,
                asdict(options),
                gates.to_json(),
                extractor.name,
                extractor.version,
                seed,
                sorted(targets),
            ]
        ).encode()
    )
    path = run.directory.calibration_path / f"{key[:16]}.json"
    # One at a time, whoever makes which shards, so that all have the same; and on threads of a fixed number.
    with files.locked(path.parent, wait=True), threadpool_limits(run.recipe.generation.threads):
        # What a user's function gives may have changed under the same name.
        found = _stored(path) if extractor.version else None
        if found is None:
            found = _measured(run, synthesizer, gates, targets, extractor, seed, key)
            _store(path, key, extractor, seed, found)
    return found


def _measured(
    run: LoadedRun,
    synthesizer: Synthesizer,
    gates: Gates,
    targets: tuple[str, ...],
    extractor: FeatureExtractor,
    seed: int,
    key: str,
) -> dict[str, ClassCalibration]:
    options = run.recipe.filtering
    real = real_evidence(run, synthesizer, gates, extractor, targets)
    space = fit_space(real, options.dimensions, run.recipe.plan.feature_images, seed)
    found = {}
    for target in targets:
        pool = evidence_of(list(_candidate_pool(run, synthesizer, target, f"calibration/{key}")), synthesizer)
        found[target] = calibrate_class(
            target,
            real,
            space,
            pool,
            gates,
            floor_draws=options.floor_draws,
            seed=seed,
        )
    return found


def _store(path: Path, key: str, extractor: FeatureExtractor, seed: int, found: dict[str, ClassCalibration]) -> None:
    filters = filters_of(list(found.values()))
    values = {
        "key": key,
        "features": extractor.name,
        "seed": seed,
        "classes": {name: calibration.to_json() for name, calibration in found.items()},
        "arrays": save_filters(path.with_suffix(".safetensors"), filters) if filters else {},
    }
    files.write_sealed_json(path, values)


def _stored(path: Path) -> dict[str, ClassCalibration] | None:
    """Return an earlier calibration, None when there is none; a damaged one is measured again."""
    if not path.is_file():
        return None
    try:
        values = files.read_sealed_json(path)
        arrays = values["arrays"]
        filters = load_filters(path.with_suffix(".safetensors"), arrays) if arrays else {}
    except DamagedError as error:
        logger.warning("%s It is measured again.", error)
        return None
    return {
        name: ClassCalibration.from_json(of_class, filters.get(name)) for name, of_class in values["classes"].items()
    }


def evidence_of(batch: Sequence[Made], synthesizer: Synthesizer) -> Evidence:
    """Return what is known of made images of one class."""
    known = synthesizer.knows(batch[0].candidate.slot.class_name)
    return Evidence(
        features=np.stack([made.features for made in batch]),
        texture=texture(np.stack([made.pixels for made in batch])),
        confidence=np.array([made.confidence for made in batch]) if known else None,
    )


def real_evidence(
    run: LoadedRun, synthesizer: Synthesizer, gates: Gates, extractor: FeatureExtractor, targets: tuple[str, ...]
) -> RealFeatures:
    """Look at the real images: all of the targets', enough of the other classes to tell them apart."""
    index, options = run.index, run.recipe.data
    names = [name for name in index.classes if len(index.rows("train", name))]
    most, train = most_of_a_class(len(names)), {}
    for label, name in enumerate(names):
        rows = index.rows("train", name)
        if name not in targets:
            rows = np.sort(np.random.default_rng((run.recipe.seed, label)).permutation(rows)[:most])
        train[name] = real_features(index, rows, options, extractor)
    held_out = {name: real_features(index, index.rows("val", name), options, extractor) for name in targets}
    if not gates.images.checks:
        return RealFeatures(train, held_out)
    copies, textures, confidence = {}, {}, {}
    for name in targets:
        pixels = np.stack([synthesizer.load(row) for row in index.rows("train", name).tolist()])
        textures[name] = texture(pixels)
        if MEMORISED in gates.images.checks:
            copies[name] = np.stack([extractor.extract_all(copy) for copy in near_copies(pixels)])
        unseen = index.rows("val", name).tolist()
        if synthesizer.knows(name) and unseen:
            confidence[name] = synthesizer.confidences_of(name, np.stack([synthesizer.load(row) for row in unseen]))
    return RealFeatures(train, held_out, copies, textures, confidence)


def _candidate_pool(run: LoadedRun, synthesizer: Synthesizer, target: str, key: str) -> Iterator[Made]:
    """Make the first candidates of a class's pool."""
    stream = candidate_stream(key, run.index, run.plan, run.recipe)
    candidates = [stream.draw(Slot(target, ordinal), 0) for ordinal in range(run.recipe.filtering.pool_images)]
    with ThreadPoolExecutor() as pool:
        for batch in batches_by_model(run, candidates, synthesizer.batch):
            yield from synthesizer.make(batch, list(pool.map(synthesizer.load, [c.source for c in batch])))
