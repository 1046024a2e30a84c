"""The real images that filters are fitted to, however they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rebalance.class_probe import most_of_a_class
from rebalance.features import FeatureExtractor
from rebalance.filtering.evidence import RealFeatures, near_copies, texture
from rebalance.filtering.gates import Gates
from rebalance.filtering.image_filter import LOW_CONFIDENCE, MEMORISED
from rebalance.index import ImageIndex
from rebalance.metrics import at_most

# Val images of all classes together, and of one at least, for what those of others look like to a class.
_OTHERS, _LEAST_OF_OTHERS = 500, 5


class RealView(Protocol):
    """How real images are looked at: as the synthetic ones they are compared with."""

    index: ImageIndex
    extractor: FeatureExtractor

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return features (n, D) of images."""

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, (H, W, C) uint8."""

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the probability (n,) of each class that the method can tell, by the method itself."""


def real_evidence(view: RealView, gates: Gates, targets: tuple[str, ...], seed: int) -> RealFeatures:
    """Look at the real images: all of the targets', enough of the other classes to tell them apart.

    Args:
        view: how they are looked at.
        gates: what is asked.
        targets: classes to calibrate.
        seed: seed of the draws of the other classes.
    """
    index = view.index
    names = [name for name in index.classes if len(index.rows("train", name)) or name in targets]
    most, train = most_of_a_class(len(names)), {}
    for label, name in enumerate(names):
        rows = index.rows("train", name)
        if name not in targets:
            rows = np.sort(np.random.default_rng((seed, label)).permutation(rows)[:most])
        train[name] = view.features(rows)
    held_out = {name: view.features(index.rows("val", name)) for name in targets}
    if not gates.images.checks:
        return RealFeatures(train, held_out)
    copies, textures, confidence = {}, {}, {}
    for name in targets:
        textures[name], copies_of_class = _texture_and_copies(view, index.rows("train", name), gates)
        if copies_of_class.size:
            copies[name] = copies_of_class
        if len(index.rows("val", name)):
            confidence |= view.confidences((name,), index.rows("val", name))
    if LOW_CONFIDENCE not in gates.images.checks or gates.images.min_confidence is not None or len(names) < 2:
        return RealFeatures(train, held_out, copies, textures, confidence)
    most = max(_LEAST_OF_OTHERS, _OTHERS // len(names))
    drawn = {name: at_most(index.rows("val", name), most, seed, label) for label, name in enumerate(names)}
    drawn = {name: rows for name, rows in drawn.items() if len(rows)}
    return RealFeatures(
        train,
        held_out,
        copies,
        textures,
        confidence,
        others={name: view.features(rows) for name, rows in drawn.items()},
        others_confidence=_confidences(view, targets, drawn) if drawn else {},
    )


def _confidences(
    view: RealView, targets: Sequence[str], rows: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The method's own confidence that images of any class are of a target, all in one go."""
    found = view.confidences(targets, np.concatenate([*rows.values()]))
    ends = np.cumsum([len(of_class) for of_class in rows.values()])
    return {name: dict(zip(rows, np.split(of_all, ends[:-1]), strict=True)) for name, of_all in found.items()}


def _texture_and_copies(view: RealView, rows: np.ndarray, gates: Gates) -> tuple[np.ndarray, np.ndarray]:
    """Texture (n,) and the features (c, n, D) of near copies of train images, batch by batch."""
    textures, copies = [np.zeros(0, np.float32)], []
    for pixels in _parts(view, rows):
        textures.append(texture(pixels))
        if MEMORISED in gates.images.checks:
            copies.append(np.stack([view.extractor.extract_all(copy) for copy in near_copies(pixels)]))
    return np.concatenate(textures), np.concatenate(copies, 1) if copies else np.zeros(0)


def _parts(view: RealView, rows: np.ndarray) -> Iterator[np.ndarray]:
    size = view.extractor.batch
    for first in range(0, len(rows), size):
        yield np.stack([view.pixels(row) for row in rows[first : first + size].tolist()])
