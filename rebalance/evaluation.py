"""Station 9, evaluation: synthetic images against held-out real ones, class by class."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rebalance import files, frechet, images, metrics
from rebalance.config import DataOptions, FeatureOptions
from rebalance.devices import choose_device
from rebalance.errors import InputError
from rebalance.features import FeatureExtractor, make_extractor
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.index.table import SPLITS
from rebalance.shards import read_synthetic
from rebalance.shards.manifest import MANIFEST, REQUEST

RESULT = "evaluation.json"
_MAX_SIDE_PX = 1024
_FLOOR_DRAWS = 20
_CLASSIFIER_IMAGES = 500

_Measure = TypeVar("_Measure")


@dataclass(frozen=True)
class ClassEvaluation:
    """The figures of one class; one that could not be taken is None, and `notes` say why.

    Attributes:
        class_name: the class.
        n_synthetic: synthetic images compared.
        n_real: held-out real images compared.
        n_train: real train images compared.
        fd: Fréchet distance in principal components of real features, with n, d, bias and floor.
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
    fid: float | None
    kid: metrics.KernelDistance | None
    neighbourhoods: metrics.Neighbourhoods | None
    memorised: float | None
    agreement: float | None
    agreement_real: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What comparing synthetic with held-out real images gave.

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


@dataclass(frozen=True)
class _Look:
    """How images are looked at, the same for real and synthetic ones: as colour squares of one size."""

    size_px: int
    square: str
    encoding: tuple[str, int] | None

    def of_real(self, image: Image.Image) -> np.ndarray:
        """Bring a real image to the synthetic ones' shape and through their file format."""
        pixels = self.of_synthetic(image)
        if self.encoding is None:
            return pixels
        if image.mode == "L":
            pixels = pixels[..., :1]
        return self.of_synthetic(Image.open(io.BytesIO(images.encode(pixels, *self.encoding))))

    def of_synthetic(self, image: Image.Image) -> np.ndarray:
        return images.to_square(image, self.size_px, 3, self.square)


def evaluate(
    synthetic: str | Path,
    real: str | Path,
    *,
    split: str | None = None,
    extractor: str | None = None,
    input_px: int | None = None,
    weights: str | Path | None = None,
    square: str | None = None,
    dimensions: int = 64,
    max_images: int = 5000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Compare synthetic images with held-out real ones; for an output of `generate` the result is kept in it.

    Args:
        synthetic: an output of `generate`, or an image folder, manifest or shards made by anything else.
        real: the real data set.
        split: "test", "val" or "train"; by default test, else val, which the run may have held out itself.
        extractor: "efficientnet" or "inception"; by default that of the run, else efficientnet.
        input_px: side to which images are resized for efficientnet; by default the run's, else 224.
        weights: Inception weights.
        square: how real images are brought to the synthetic ones' square; by default the run's way, else "crop".
        dimensions: principal components in which the Fréchet distance is taken, at most.
        max_images: images of a class and side, at most; more are drawn from.
        seed: seed of every draw.
        device: "auto", "cpu" or "cuda".
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input, no held-out split, or no class on both sides.
    """
    _check(split, square, dimensions, max_images, seed)
    synthetic = Path(synthetic)
    manifest = _manifest(synthetic)
    index = build_index(Path(real), progress=progress)
    index = carve_validation(index, **manifest["validation"]) if manifest else index
    chosen = _split(index, split)
    made = _of_output(synthetic, max_images) if manifest else _of_folder(synthetic, max_images, seed, progress)
    _check_classes(made, index, chosen)
    look = _look(made, manifest, square)
    options = _features(manifest, extractor, input_px, weights)
    comparison = _Comparison(index, chosen, look, make_extractor(options, choose_device(device)), max_images, seed)
    classes = comparison.classes({name: made[name] for name in index.classes if name in made}, dimensions)
    result = Evaluation(synthetic, chosen, comparison.extractor.name, seed, classes, _mean(classes))
    if manifest:
        files.write_json(synthetic / RESULT, {**result.to_json(), "images": ""})
    return result


def _check(split: str | None, square: str | None, dimensions: int, max_images: int, seed: int) -> None:
    if split is not None and split not in SPLITS:
        raise InputError("--split is unknown", value=split, allowed=", ".join(SPLITS))
    if square is not None:
        DataOptions(square=square)
    for option, value, least in (("--dimensions", dimensions, 1), ("--max-images", max_images, 2), ("--seed", seed, 0)):
        if value < least:
            raise InputError(option, value=value, allowed=f"{least} or more")


def _split(index: ImageIndex, split: str | None) -> str:
    """Return the split of the real images: the one asked for, else a held-out one."""
    counts = {name: sum(index.counts(name).values()) for name in SPLITS}
    if split is None:
        split = next((name for name in ("test", "val") if counts[name]), None)
    if split is None or not counts[split]:
        there = ", ".join(f"{name} ({n})" for name, n in counts.items() if n)
        raise InputError(
            f"DATA has no {split or 'held-out'} images",
            allowed=there,
            remedy="Hold some real images out, or compare with what the model has seen: --split train",
        )
    return split


@dataclass(frozen=True)
class _Picture:
    """A synthetic image: its larger side, and how to get it."""

    side_px: int
    load: Callable[[], Image.Image]


def _manifest(synthetic: Path) -> dict[str, Any]:
    """Return the manifest of an output of `generate`, empty for anything else."""
    if (synthetic / MANIFEST).is_file() and (synthetic / REQUEST).is_file():
        return files.read_sealed_json(synthetic / MANIFEST)
    if (synthetic / REQUEST).is_file():
        raise InputError(
            "SYNTHETIC is not complete: it has no manifest.json",
            value=str(synthetic),
            remedy="Run the same `rebalance generate` again",
        )
    return {}


def _of_output(out: Path, max_images: int) -> dict[str, list[_Picture]]:
    """Return the first synthetic images of each class, whose order is seeded."""
    found: dict[str, list[_Picture]] = {}
    for image in read_synthetic(out):
        kept = found.setdefault(image.fields["class"], [])
        if len(kept) < max_images:
            kept.append(_Picture(max(image.picture.size), image.picture.copy))
    return found


def _of_folder(path: Path, max_images: int, seed: int, progress: bool) -> dict[str, list[_Picture]]:
    """Return a seeded draw of the images of each class; each is decoded when it is looked at."""
    index, found = build_index(path, progress=progress), {}
    sides = np.maximum(index.column("width"), index.column("height"))
    for label, name in enumerate(index.classes):
        rows = np.concatenate([index.rows(split, name) for split in SPLITS])
        if len(rows):
            chosen = metrics.at_most(rows, max_images, seed, label).tolist()
            found[name] = [_Picture(int(sides[row]), functools.partial(index.load, row)) for row in chosen]
    return found


def _check_classes(made: Mapping[str, Sequence[_Picture]], index: ImageIndex, split: str) -> None:
    if not made:
        raise InputError("there is no synthetic image")
    unknown = sorted(name for name in made if name not in index.classes)
    if unknown:
        raise InputError(
            "synthetic images of classes that DATA does not have", value=unknown[:5], allowed=", ".join(index.classes)
        )
    absent = [name for name in made if not len(index.rows(split, name))]
    if len(absent) == len(made):
        raise InputError(f"DATA has no {split} image of any class that has synthetic ones", value=absent[:5])


def _look(made: Mapping[str, Sequence[_Picture]], manifest: Mapping[str, Any], square: str | None) -> _Look:
    request = manifest.get("request", {})
    largest = max(picture.side_px for pictures in made.values() for picture in pictures)
    return _Look(
        size_px=min(largest, _MAX_SIDE_PX),
        square=square or manifest.get("square", "crop"),
        encoding=(request["file_format"], request["quality"]) if request else None,
    )


def _features(
    manifest: Mapping[str, Any], extractor: str | None, input_px: int | None, weights: str | Path | None
) -> FeatureOptions:
    known = manifest.get("features", {})
    return FeatureOptions(
        extractor=extractor or known.get("extractor", "efficientnet"),
        input_px=input_px or known.get("input_px", 224),
        weights=str(weights) if weights else "",
    )


@dataclass(frozen=True)
class _Comparison:
    """Compares classes with real images of one split of an index."""

    index: ImageIndex
    split: str
    look: _Look
    extractor: FeatureExtractor
    max_images: int
    seed: int

    def classes(self, made: Mapping[str, Sequence[_Picture]], dimensions: int) -> tuple[ClassEvaluation, ...]:
        real = {name: self._real(self.split, name) for name in self.index.classes}
        train = real if self.split == "train" else {name: self._real("train", name) for name in self.index.classes}
        projection = frechet.fit_projection(np.concatenate(list(real.values())), dimensions)
        predict = self._classifier(train)
        return tuple(
            self._of_class(name, self._synthetic(pictures), real[name], train[name], projection.apply, predict)
            for name, pictures in made.items()
        )

    def _synthetic(self, pictures: Sequence[_Picture]) -> np.ndarray:
        return self.extractor.extract_all(self.look.of_synthetic(picture.load()) for picture in pictures)

    def _real(self, split: str, name: str) -> np.ndarray:
        key = (self.seed, SPLITS.index(split), self.index.label(name))
        rows = metrics.at_most(self.index.rows(split, name), self.max_images, *key)
        return self.extractor.extract_all(self.look.of_real(self.index.load(int(row))) for row in rows)

    def _classifier(self, train: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray] | None:
        """Logistic regression on the features of real train images; maps features to class names."""
        names = [name for name, features in train.items() if len(features)]
        if len(names) < 2:
            return None
        parts = [metrics.at_most(train[name], _CLASSIFIER_IMAGES, self.seed, self.index.label(name)) for name in names]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced"))
        model.fit(np.concatenate(parts), np.repeat(names, [len(part) for part in parts]))
        return model.predict

    def _of_class(
        self,
        name: str,
        synthetic: np.ndarray,
        real: np.ndarray,
        train: np.ndarray,
        project: Callable[[np.ndarray], np.ndarray],
        predict: Callable[[np.ndarray], np.ndarray] | None,
    ) -> ClassEvaluation:
        notes: list[str] = []

        def measured(what: str, measure: Callable[[], _Measure]) -> _Measure | None:
            try:
                return measure()
            except InputError as error:
                notes.append(f"no {what}: {error}")
                return None

        def share(features: np.ndarray) -> float | None:
            return float((predict(features) == name).mean()) if predict and len(features) else None

        small = (project(real), project(synthetic))
        with_train = len(train) and len(real)
        return ClassEvaluation(
            class_name=name,
            n_synthetic=len(synthetic),
            n_real=len(real),
            n_train=len(train),
            fd=measured("FD", lambda: frechet.compare(*small, draws=_FLOOR_DRAWS, seed=self.seed)),
            fid=measured("FID", lambda: frechet.unreduced_distance(real, synthetic)),
            kid=measured("KID", lambda: metrics.kernel_distance(real, synthetic, self.seed)),
            neighbourhoods=measured("neighbourhoods", lambda: metrics.neighbourhoods(real, synthetic)),
            memorised=metrics.memorised_share(train, real, synthetic) if with_train and self.split != "train" else None,
            agreement=share(synthetic),
            agreement_real=share(real),
            notes=tuple(notes),
        )


def _mean(classes: Sequence[ClassEvaluation]) -> dict[str, float]:
    """Average over classes every figure that each of them has."""

    def figures(of_class: ClassEvaluation) -> Iterator[tuple[str, float]]:
        if of_class.fd:
            yield "fd", of_class.fd.distance
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
