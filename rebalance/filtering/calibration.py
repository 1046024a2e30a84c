"""Calibrating a run: real features, a pool of candidates of each target, and what was found, kept with the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from rebalance import files
from rebalance.features import FeatureExtractor
from rebalance.filtering.archive import read_calibrations, write_calibrations
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class
from rebalance.filtering.evidence import Evidence, texture
from rebalance.filtering.fitting import fit_space
from rebalance.filtering.gates import Gates
from rebalance.filtering.real import real_evidence
from rebalance.generation import LoadedRun, Made, Slot, Synthesizer, batches_by_model, candidate_stream
from rebalance.index import ImageIndex
from rebalance.planning import real_features


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
        found = read_calibrations(path, key) if extractor.version else None
        if found is None:
            found = _measured(run, synthesizer, gates, targets, extractor, seed, key)
            found = write_calibrations(path, key, extractor.name, seed, found)
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
    real = real_evidence(RunView(run, synthesizer, extractor), gates, targets, run.recipe.seed)
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


def evidence_of(batch: Sequence[Made], synthesizer: Synthesizer) -> Evidence:
    """Return what is known of made images of one class."""
    known = synthesizer.knows(batch[0].candidate.slot.class_name)
    return Evidence(
        features=np.stack([made.features for made in batch]),
        texture=texture(np.stack([made.pixels for made in batch])),
        confidence=np.array([made.confidence for made in batch]) if known else None,
    )


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
    stream = candidate_stream(key, run.index, run.plan, run.recipe)
    candidates = [stream.draw(Slot(target, ordinal), 0) for ordinal in range(run.recipe.filtering.pool_images)]
    with ThreadPoolExecutor() as pool:
        for batch in batches_by_model(run, candidates, synthesizer.batch):
            yield from synthesizer.make(batch, list(pool.map(synthesizer.load, [c.source for c in batch])))
