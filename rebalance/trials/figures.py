"""Figures of classifiers on imbalanced data, from confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Figures:
    """Figures of one confusion matrix, over the classes that it has images of.

    Attributes:
        balanced_accuracy: mean recall.
        macro_f1: mean F1.
        geometric_mean: k-th root of the product of the k recalls.
        macro_geometric_mean: mean of sqrt(true positive rate x true negative rate), class against the rest.
        poor_recall: mean recall of the classes that synthetic images were made for.
        recalls: recall of each class, in label order; NaN without images.
    """

    balanced_accuracy: float
    macro_f1: float
    geometric_mean: float
    macro_geometric_mean: float
    poor_recall: float
    recalls: tuple[float, ...]


SCALARS = ("balanced_accuracy", "macro_f1", "geometric_mean", "macro_geometric_mean", "poor_recall")
"""The figures that are one number."""


def figures_of(confusion: np.ndarray, poor: Sequence[int]) -> Figures:
    """Return the figures of a confusion matrix.

    Args:
        confusion: (classes, classes) images by true and predicted label.
        poor: labels of the poor classes.
    """
    hits, of_class, taken = np.diag(confusion).astype(np.float64), confusion.sum(1), confusion.sum(0)
    seen, total = of_class > 0, confusion.sum()
    recalls = np.divide(hits, of_class, out=np.full(len(hits), np.nan), where=seen)
    f1 = 2 * hits[seen] / (of_class + taken)[seen]
    negatives = total - of_class
    specificity = 1 - np.divide(taken - hits, negatives, out=np.zeros(len(hits)), where=negatives > 0)
    measured = recalls[seen]
    return Figures(
        balanced_accuracy=float(measured.mean()),
        macro_f1=float(f1.mean()),
        geometric_mean=float(measured.prod() ** (1 / len(measured))),
        macro_geometric_mean=float(np.sqrt(measured * specificity[seen]).mean()),
        poor_recall=_mean_of([recalls[label] for label in poor]),
        recalls=tuple(recalls.tolist()),
    )


def _mean_of(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
