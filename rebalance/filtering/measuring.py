"""Measuring the evidence that checks ask for: on real images, once, and on candidates, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rebalance.filtering.checks import REGISTRY
from rebalance.filtering.checks.base import Need
from rebalance.filtering.criteria import Criteria
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.near_copies import copies_of
from rebalance.index import ImageIndex
from rebalance.measures.class_probe import most_of_a_class
from rebalance.measures.features import FeatureExtractor
from rebalance.measures.sets import at_most

# Val images of all classes together, and of one at least, for the confidence in a class of others' images.
_OTHERS, _LEAST_OF_OTHERS = 500, 5


class RealView(Protocol):
    """Real images in the view of the synthetic ones that they are compared with."""

    @property
    def index(self) -> ImageIndex:
        """The real data set."""

    @property
    def extractor(self) -> FeatureExtractor:
        """The features."""

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return features (n, D) of images."""

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, (H, W, C) uint8."""

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the probability (n,) of each class that the method can tell, by the method itself."""


def evidence_from(features: np.ndarray, pixels: np.ndarray, confidence: np.ndarray | None = None) -> Evidence:
    """Return the evidence on candidates of one class.

    Args:
        features: (n, D).
        pixels: (n, H, W, C) uint8.
        confidence: (n,) probability of the class by the method itself; None where it cannot tell.
    """
    measures = {name: measure for check in REGISTRY.values() for name, measure in check.pixel_measures.items()}
    return Evidence(features, {name: measure(pixels) for name, measure in measures.items()}, confidence)


def real_evidence(view: RealView, criteria: Criteria, targets: tuple[str, ...], seed: int) -> RealFeatures:
    """Measure the real images: all of the targets', enough of the other classes to tell them apart.

    Args:
        view: how they are seen.
        criteria: what is asked.
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
    checks = criteria.images.ordered()
    if not checks:
        return RealFeatures(train, held_out)
    needs = frozenset[Need]().union(*(check.needs(criteria.images.limit_of(check)) for check in checks))
    measured, copies = _of_pixels(view, criteria, targets, Need.COPIES in needs)
    confidence: dict[str, np.ndarray] = {}
    for name in targets if Need.OWN_CONFIDENCE in needs else ():
        if len(index.rows("val", name)):
            confidence |= view.confidences((name,), index.rows("val", name))
    others: dict[str, np.ndarray] = {}
    if Need.OTHER_CLASSES in needs and len(names) > 1:
        others = _rows_of_others(index, names, seed)
    return RealFeatures(
        train,
        held_out,
        copies,
        measured,
        confidence,
        others={name: view.features(rows) for name, rows in others.items()},
        others_confidence=_confidences(view, targets, others) if others else {},
    )


def _rows_of_others(index: ImageIndex, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Draw some val images of every class that has any."""
    most = max(_LEAST_OF_OTHERS, _OTHERS // len(names))
    drawn = {name: at_most(index.rows("val", name), most, seed, label) for label, name in enumerate(names)}
    return {name: rows for name, rows in drawn.items() if len(rows)}


def _confidences(
    view: RealView, targets: Sequence[str], rows: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the method's own confidence that images of any class are of a target, all in one go."""
    by_target = view.confidences(targets, np.concatenate([*rows.values()]))
    ends = np.cumsum([len(of_class) for of_class in rows.values()])
    return {name: dict(zip(rows, np.split(of_all, ends[:-1]), strict=True)) for name, of_all in by_target.items()}


def _of_pixels(
    view: RealView, criteria: Criteria, targets: Sequence[str], with_copies: bool
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return what checks measure on the pixels of train images, and features (c, n, D) of near copies, by class."""
    measures = {k: measure for check in criteria.images.ordered() for k, measure in check.pixel_measures.items()}
    measured: dict[str, dict[str, np.ndarray]] = {key: {} for key in measures}
    copies: dict[str, np.ndarray] = {}
    for name in targets:
        values: dict[str, list[np.ndarray]] = {key: [np.zeros(0, np.float32)] for key in measures}
        parts = []
        for pixels in _batches(view, view.index.rows("train", name)) if measures or with_copies else ():
            for key, measure in measures.items():
                values[key].append(measure(pixels))
            if with_copies:
                parts.append(np.stack([view.extractor.extract_all(copy) for copy in copies_of(pixels)]))
        for key, of_class in values.items():
            measured[key][name] = np.concatenate(of_class)
        if parts:
            copies[name] = np.concatenate(parts, 1)
    return measured, copies


def _batches(view: RealView, rows: np.ndarray) -> Iterator[np.ndarray]:
    size = view.extractor.batch
    for first in range(0, len(rows), size):
        yield np.stack([view.pixels(row) for row in rows[first : first + size].tolist()])
