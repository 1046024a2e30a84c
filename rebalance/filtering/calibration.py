"""Station 7, filtering: a candidate in, a verdict out; and the gate that a whole class must pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rebalance import files, frechet
from rebalance.errors import DamagedError, InputError
from rebalance.features import FeatureExtractor
from rebalance.generation import LoadedRun, Made, Slot, Synthesizer, batches_by_model, candidate_stream

logger = logging.getLogger(__name__)

LOW_CONFIDENCE = "low_confidence"


@dataclass(frozen=True)
class Threshold:
    """A limit on a distance: absolute, or a multiple of its floor.

    Attributes:
        value: the limit or the factor.
        of_floor: whether `value` is a factor.
    """

    value: float
    of_floor: bool

    @classmethod
    def parse(cls, text: str | float, option: str) -> Threshold:
        """Read `12.5` or `3x`.

        Raises:
            InputError: neither, or not above 0.
        """
        words = str(text).strip().lower()
        try:
            value = float(words.removesuffix("x"))
        except ValueError:
            value = float("nan")
        if not (value > 0 and np.isfinite(value)):
            raise InputError(option, value=text, allowed="a number above 0, or a multiple of the floor such as 3x")
        return cls(value, words.endswith("x"))

    def limit(self, floor: float) -> float:
        """Return the absolute limit."""
        return self.value * floor if self.of_floor else self.value

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.of_floor else f"{self.value:g}"


@dataclass(frozen=True)
class Gates:
    """What images and classes must pass.

    Attributes:
        min_confidence: least probability of its class that an image must have; None lets all pass.
        max_fid: limit on the Fréchet distance of a class's calibration pool; None lets all pass.
    """

    min_confidence: float | None = None
    max_fid: Threshold | None = None

    def __post_init__(self) -> None:
        """Check the range of the confidence."""
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InputError("--min-confidence", value=self.min_confidence, allowed="0 to 1")

    def to_json(self) -> dict[str, Any]:
        """Return the gates as plain values."""
        return {"min_confidence": self.min_confidence, "max_fid": str(self.max_fid) if self.max_fid else None}


@dataclass(frozen=True)
class Verdict:
    """Whether an image is kept, and if not, why."""

    accepted: bool
    reason: str = ""


def judge(made: Made, gates: Gates) -> Verdict:
    """Judge one image; it depends on nothing but the image's scores and the gates."""
    if gates.min_confidence is not None and made.confidence < gates.min_confidence:
        return Verdict(False, LOW_CONFIDENCE)
    return Verdict(True)


@dataclass(frozen=True)
class ClassCalibration:
    """What was found on a class before its first shard.

    Attributes:
        class_name: the class.
        fid: distance of the pool's accepted images to the real train images; None when it could not be measured.
        limit: the distance allowed.
        pool: candidates in the pool.
        accepted: those that passed the image gates.
        withheld: whether the class gets no slots.
        reason: why it is withheld.
    """

    class_name: str
    fid: frechet.FrechetResult | None
    limit: float | None
    pool: int
    accepted: int
    withheld: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ClassCalibration:
        """Rebuild what `to_json` returned."""
        fid = frechet.FrechetResult(**values["fid"]) if values["fid"] else None
        return cls(**{**values, "fid": fid})


def check_gates(run: LoadedRun, gates: Gates, targets: tuple[str, ...]) -> None:
    """Check that the method can give what the gates ask for.

    Raises:
        InputError: confidence is asked of a model without a class head, or of a class that it was not trained on.
    """
    if gates.min_confidence is None:
        return
    for target in targets:
        model = run.model_of(target)
        if not model.method.has_class_head or not model.labels[target]:
            raise InputError(
                f"--min-confidence: the model of {target!r} cannot tell its class",
                remedy="Fit with classifier_head and target_in_training on, or leave the option out",
            )


def calibrate(
    run: LoadedRun,
    synthesizer: Synthesizer,
    gates: Gates,
    targets: tuple[str, ...],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, ClassCalibration]:
    """Measure every target on a seeded pool of candidates; the result is stored in the run and read back next time.

    Args:
        run: the run.
        synthesizer: makes the pool.
        gates: `max_fid` must be set.
        targets: classes to calibrate.
        extractor: features of the Fréchet distance.
        seed: the generation's seed.
    """
    options = run.recipe.filtering
    key = files.sha256_bytes(
        files.canonical_json(
            [run.fingerprint, asdict(options), gates.to_json(), extractor.name, seed, sorted(targets)]
        ).encode()
    )
    path = run.directory.calibration_path / f"{key[:16]}.json"
    stored = _stored(path)
    if stored:
        return {name: ClassCalibration.from_json(values) for name, values in stored["classes"].items()}
    projection = _projection(run, extractor)
    found = {
        target: _calibrate_class(run, synthesizer, gates, target, extractor, projection, f"calibration/{key}", seed)
        for target in targets
    }
    values = {name: calibration.to_json() for name, calibration in found.items()}
    files.write_sealed_json(path, {"key": key, "features": extractor.name, "seed": seed, "classes": values})
    return found


def _stored(path: Path) -> dict[str, Any]:
    """Return an earlier calibration, empty when there is none; a damaged one is measured again."""
    if not path.is_file():
        return {}
    try:
        return files.read_sealed_json(path)
    except DamagedError as error:
        logger.warning("%s It is measured again.", error)
        return {}


def _projection(run: LoadedRun, extractor: FeatureExtractor) -> frechet.Projection:
    """Principal components of the pooled real features of all classes that take part."""
    rows = []
    for label, name in enumerate(run.plan.classes()):
        of_class = run.index.rows("train", name)
        order = np.random.default_rng((run.recipe.seed, label)).permutation(of_class)
        rows.append(order[: run.recipe.plan.feature_images])
    features = extractor.extract_all(_squares(run, np.sort(np.concatenate(rows))))
    return frechet.fit_projection(features, run.recipe.filtering.dimensions)


def _squares(run: LoadedRun, rows: np.ndarray) -> Iterator[np.ndarray]:
    return (run.index.square(int(row), run.recipe.data) for row in rows)


def _calibrate_class(
    run: LoadedRun,
    synthesizer: Synthesizer,
    gates: Gates,
    target: str,
    extractor: FeatureExtractor,
    projection: frechet.Projection,
    key: str,
    seed: int,
) -> ClassCalibration:
    pool = list(candidate_pool(run, synthesizer, target, key))
    accepted = [made.pixels for made in pool if judge(made, gates).accepted]
    result = ClassCalibration(target, None, None, len(pool), len(accepted), True, "")
    real_rows = run.index.rows("train", target)
    if len(accepted) < 2:
        return replace(result, reason=f"{len(accepted)} of {len(pool)} candidates passed the image gates")
    if len(real_rows) < 2:
        return replace(result, reason="a Fréchet distance needs at least 2 real images")
    assert gates.max_fid is not None
    real = projection.apply(extractor.extract_all(_squares(run, real_rows)))
    synthetic = projection.apply(extractor.extract_all(accepted))
    fid = frechet.compare(real, synthetic, draws=run.recipe.filtering.floor_draws, seed=seed)
    limit = gates.max_fid.limit(fid.floor)
    if fid.distance > limit:
        reason = f"FD {fid.distance:.4g} is above {limit:.4g}"
        return replace(result, fid=fid, limit=limit, reason=reason)
    return replace(result, fid=fid, limit=limit, withheld=False)


def candidate_pool(run: LoadedRun, synthesizer: Synthesizer, target: str, key: str) -> Iterator[Made]:
    """Make the first candidates of a class's pool."""
    stream = candidate_stream(key, run.index, run.plan, run.recipe)
    candidates = [stream.draw(Slot(target, ordinal), 0) for ordinal in range(run.recipe.filtering.pool_images)]
    with ThreadPoolExecutor() as pool:
        for batch in batches_by_model(run, candidates, synthesizer.batch):
            yield from synthesizer.make(batch, list(pool.map(synthesizer.load, [c.source for c in batch])))
