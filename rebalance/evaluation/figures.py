"""Station 9, evaluation: synthetic images against held-out real ones, class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rebalance import storage
from rebalance.config.requests import FeatureChoice
from rebalance.config.sections import SQUARES
from rebalance.errors import InputError
from rebalance.evaluation.images import Picture, check_classes, pictures_of_index, pictures_of_output, view_of
from rebalance.filtering.real_images import RealImages
from rebalance.imaging.views import View
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.index.image_index import SPLITS
from rebalance.measures import frechet
from rebalance.measures.class_probe import ClassProbe, fit_probe
from rebalance.measures.features import FeatureExtractor, choose_extractor
from rebalance.measures.kid import KernelDistance, kernel_distance
from rebalance.measures.neighbours import Neighbourhoods, memorised_share, neighbourhoods
from rebalance.measures.sets import at_most
from rebalance.runtime.devices import choose_device
from rebalance.shards.comparison import feature_options
from rebalance.shards.records import manifest_of
from rebalance.training import encoder_of

RESULT = "evaluation.json"
_FLOOR_DRAWS = 20  # pairs of sets, enough for a mean to compare with

_Measure = TypeVar("_Measure")


@dataclass(frozen=True)
class ClassEvaluation:
    """The figures of one class; one that could not be measured is None, and `notes` say why.

    Attributes:
        class_name: the class.
        n_synthetic: synthetic images compared.
        n_real: held-out real images compared.
        n_train: real train images compared.
        fd: Fréchet distance in principal components of real features, with n, d, bias and floor.
        fd_infinity: FD extrapolated to infinitely many synthetic images, with its standard error.
        fid: Fréchet distance in all dimensions with plain covariances, for comparison with papers at equal n.
        kid: kernel distance with its standard error.
        neighbourhoods: precision, recall, density and coverage.
        memorised: share of synthetic images nearer to a real train image than 99% of the held-out ones are.
        agreement: share that a classifier of the real train images takes for the class.
        agreement_real: the same share of the held-out real images.
        notes: what could not be measured.
    """

    class_name: str
    n_synthetic: int
    n_real: int
    n_train: int
    fd: frechet.FrechetResult | None
    fd_infinity: frechet.Extrapolated | None
    fid: float | None
    kid: KernelDistance | None
    neighbourhoods: Neighbourhoods | None
    memorised: float | None
    agreement: float | None
    agreement_real: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The figures of synthetic images beside held-out real ones.

    Attributes:
        images: where the synthetic images are.
        split: the split of the real images.
        features: name of the extractor.
        seed: seed of every draw.
        classes: the classes, in label order.
        mean: mean over the classes of each figure that all of them have.
    """

    images: Path
    split: str
    features: str
    seed: int
    classes: tuple[ClassEvaluation, ...]
    mean: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain values."""
        return {**asdict(self), "images": str(self.images)}


def evaluate(
    synthetic: str | Path,
    real: str | Path,
    *,
    split: str | None = None,
    features: FeatureChoice = FeatureChoice(),
    square: str | None = None,
    dimensions: int = 64,
    max_images: int = 5000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Compare synthetic images with held-out real ones; see `rebalance.api.evaluate`."""
    _check(split, square, dimensions, max_images, seed)
    synthetic, place = Path(synthetic), choose_device(device)
    manifest = manifest_of(synthetic, "synthetic")
    index = build_index(Path(real), progress=progress, parameter="real")
    if manifest:
        index = carve_validation(index, manifest.validation.fraction, manifest.validation.seed)
    split = _split(index, split)
    pictures = (
        pictures_of_output(synthetic, max_images)
        if manifest
        else pictures_of_index(build_index(synthetic, progress=progress, parameter="synthetic"), max_images, seed)
    )
    check_classes(pictures, index, split)
    view = view_of(pictures, manifest, square)
    options = feature_options(manifest, features)
    extractor = choose_extractor(features.name, options, place, lambda: encoder_of(features.run, place))
    comparison = _Comparison(index, split, view, extractor, max_images, seed)
    classes = comparison.classes({name: pictures[name] for name in index.classes if name in pictures}, dimensions)
    result = Evaluation(synthetic, split, extractor.name, seed, classes, _mean(classes))
    if manifest:
        storage.write_json(synthetic / RESULT, {**result.to_json(), "images": ""})
    return result


def _check(split: str | None, square: str | None, dimensions: int, max_images: int, seed: int) -> None:
    for name, text, allowed in (("split", split, SPLITS), ("square", square, SQUARES)):
        if text is not None and text not in allowed:
            raise InputError(f"`{name}` is unknown", value=text, allowed=", ".join(allowed))
    for name, value, least in (("dimensions", dimensions, 1), ("max_images", max_images, 2), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"`{name}`", value=value, allowed=f"{least} or more")


def _split(index: ImageIndex, split: str | None) -> str:
    """Return the split of the real images: the one asked for, else a held-out one."""
    counts = {name: sum(index.counts(name).values()) for name in SPLITS}
    if split is None:
        split = next((name for name in ("test", "val") if counts[name]), None)
    if split is None or not counts[split]:
        present = ", ".join(f"{name} ({n})" for name, n in counts.items() if n)
        raise InputError(
            f"`real` has no {split or 'held-out'} images",
            allowed=present,
            remedy='Hold some real images out, or compare with what the model has seen: `split="train"`',
        )
    return split


@dataclass(frozen=True)
class _Comparison:
    """Compares classes with real images of one split of an index."""

    index: ImageIndex
    split: str
    view: View
    extractor: FeatureExtractor
    max_images: int
    seed: int

    def classes(self, pictures: Mapping[str, Sequence[Picture]], dimensions: int) -> tuple[ClassEvaluation, ...]:
        real = {name: self._real(self.split, name) for name in self.index.classes}
        train = real if self.split == "train" else {name: self._real("train", name) for name in self.index.classes}
        projection = frechet.fit_projection(np.concatenate(list(real.values())), dimensions)
        probe = fit_probe(train, self.seed)
        return tuple(
            self._of_class(name, self._synthetic(of_class), real[name], train[name], projection.apply, probe)
            for name, of_class in pictures.items()
        )

    def _synthetic(self, pictures: Sequence[Picture]) -> np.ndarray:
        return self.extractor.extract_all(self.view.of_synthetic(picture.load()) for picture in pictures)

    def _real(self, split: str, name: str) -> np.ndarray:
        key = (self.seed, SPLITS.index(split), self.index.label(name))
        rows = at_most(self.index.rows(split, name), self.max_images, *key)
        return RealImages(self.index, self.view, self.extractor).features(rows)

    def _of_class(
        self,
        name: str,
        synthetic: np.ndarray,
        real: np.ndarray,
        train: np.ndarray,
        project: Callable[[np.ndarray], np.ndarray],
        probe: ClassProbe | None,
    ) -> ClassEvaluation:
        notes: list[str] = []

        def measured(name: str, measure: Callable[[], _Measure]) -> _Measure | None:
            try:
                return measure()
            except InputError as error:
                notes.append(f"no {name}: {error}")
                return None

        def share(features: np.ndarray) -> float | None:
            return float((probe.predict(features) == name).mean()) if probe and len(features) else None

        small = (project(real), project(synthetic))
        with_train = len(train) and len(real)
        return ClassEvaluation(
            class_name=name,
            n_synthetic=len(synthetic),
            n_real=len(real),
            n_train=len(train),
            fd=measured("FD", lambda: frechet.compare(*small, draws=_FLOOR_DRAWS, seed=self.seed)),
            fd_infinity=measured("FD at infinity", lambda: frechet.distance_at_infinity(*small, self.seed)),
            fid=measured("FID", lambda: frechet.unreduced_distance(real, synthetic)),
            kid=measured("KID", lambda: kernel_distance(real, synthetic, self.seed)),
            neighbourhoods=measured("neighbourhoods", lambda: neighbourhoods(real, synthetic)),
            memorised=memorised_share(train, real, synthetic) if with_train and self.split != "train" else None,
            agreement=share(synthetic),
            agreement_real=share(real),
            notes=tuple(notes),
        )


def _mean(classes: Sequence[ClassEvaluation]) -> dict[str, float]:
    """Average over classes every figure that each of them has."""

    def figures(of_class: ClassEvaluation) -> Iterator[tuple[str, float]]:
        if of_class.fd:
            yield "fd", of_class.fd.distance
        if of_class.fd_infinity:
            yield "fd_infinity", of_class.fd_infinity.value
        if of_class.kid:
            yield "kid", of_class.kid.value
        if of_class.neighbourhoods:
            yield from asdict(of_class.neighbourhoods).items()
        for name in ("fid", "memorised", "agreement", "agreement_real"):
            value = getattr(of_class, name)
            if value is not None:
                yield name, value

    rows = [dict(figures(of_class)) for of_class in classes]
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in shared}
