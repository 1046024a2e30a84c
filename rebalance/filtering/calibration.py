"""Calibrating a run: real features and a pool of candidates of each target; the result is kept with the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from rebalance import storage
from rebalance.filtering.calibration_store import read_calibrations, write_calibrations
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class
from rebalance.filtering.criteria import Criteria
from rebalance.filtering.evidence import Evidence
from rebalance.filtering.measuring import evidence_from, real_evidence
from rebalance.filtering.space import fit_space
from rebalance.generation.loaded_run import LoadedRun
from rebalance.generation.slots import Slot
from rebalance.generation.synthesizer import Made, Synthesizer, batches_by_model
from rebalance.index import ImageIndex
from rebalance.index.features import real_features
from rebalance.measures.features import FeatureExtractor


def calibrate(
    run: LoadedRun,
    synthesizer: Synthesizer,
    criteria: Criteria,
    targets: tuple[str, ...],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, ClassCalibration]:
    """Calibrate every target on a seeded pool of candidates; the result is stored in the run and read back next time.

    Args:
        run: the run.
        synthesizer: makes the pool, with features.
        criteria: what is asked.
        targets: classes to calibrate.
        extractor: the features.
        seed: the generation's seed.
    """
    options = run.recipe.filtering
    key = storage.sha256_bytes(
        storage.canonical_json(
            [
                run.fingerprint,
                asdict(options),
                criteria.to_json(),
                extractor.name,
                extractor.version,
                seed,
                sorted(targets),
            ]
        ).encode()
    )
    path = run.directory.calibration_path / f"{key[:16]}.json"
    # One at a time, whoever makes which shards, so that all have the same; and on threads of a fixed number.
    with storage.locked(path.parent, wait=True), threadpool_limits(run.recipe.generation.threads):
        # What a user's function gives may have changed under the same name.
        calibrations = read_calibrations(path, key) if extractor.version else None
        if calibrations is None:
            calibrations = _measured(run, synthesizer, criteria, targets, extractor, seed, key)
            calibrations = write_calibrations(path, key, extractor.name, seed, calibrations)
    return calibrations


def _measured(
    run: LoadedRun,
    synthesizer: Synthesizer,
    criteria: Criteria,
    targets: tuple[str, ...],
    extractor: FeatureExtractor,
    seed: int,
    key: str,
) -> dict[str, ClassCalibration]:
    options = run.recipe.filtering
    real = real_evidence(RunView(run, synthesizer, extractor), criteria, targets, run.recipe.seed)
    space = fit_space(real, options.dimensions, run.recipe.plan.feature_images, seed)
    calibrations = {}
    for target in targets:
        pool = evidence_of(list(_candidate_pool(run, synthesizer, target, f"calibration/{key}")), synthesizer)
        calibrations[target] = calibrate_class(
            target,
            real,
            space,
            pool,
            criteria,
            floor_draws=options.floor_draws,
            seed=seed,
        )
    return calibrations


def evidence_of(batch: Sequence[Made], synthesizer: Synthesizer) -> Evidence:
    """Return the evidence on made images of one class."""
    has_head = synthesizer.has_head_for(batch[0].candidate.slot.class_name)
    features = np.stack([made.features for made in batch if made.features is not None])
    confidence = np.array([made.confidence for made in batch]) if has_head else None
    return evidence_from(features, np.stack([made.pixels for made in batch]), confidence)


@dataclass(frozen=True)
class RunView:
    """Real images as the model's squares, see `RealView`."""

    run: LoadedRun
    synthesizer: Synthesizer
    extractor: FeatureExtractor

    @property
    def index(self) -> ImageIndex:
        """The run's data set."""
        return self.run.index

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return features (n, D) of images."""
        return real_features(self.index, rows, self.run.recipe.data, self.extractor)

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, (H, W, C) uint8."""
        return self.synthesizer.load(row)

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the probability (n,) of each class that the run's class heads can tell."""
        pixels = (self.synthesizer.load(row) for row in rows.tolist())
        return self.synthesizer.confidences_of(names, pixels)


def _candidate_pool(run: LoadedRun, synthesizer: Synthesizer, target: str, key: str) -> Iterator[Made]:
    """Make the first candidates of a class's pool."""
    stream = run.candidate_stream(key)
    candidates = [stream.draw(Slot(target, ordinal), 0) for ordinal in range(run.recipe.filtering.pool_images)]
    with ThreadPoolExecutor() as pool:
        for batch in batches_by_model(run, candidates, synthesizer.batch):
            yield from synthesizer.make(
                batch, list(pool.map(synthesizer.load, [c.source for c in batch if c.source is not None]))
            )
