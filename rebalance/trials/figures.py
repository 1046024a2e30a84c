"""Figures of classifiers on imbalanced data, from confusion matrices, and their differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rebalance.estimators import student_quantile

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figures:
    """What one confusion matrix says, over the classes that it has images of.

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


def figures(confusion: np.ndarray, poor: Sequence[int]) -> Figures:
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
    known = recalls[seen]
    return Figures(
        balanced_accuracy=float(known.mean()),
        macro_f1=float(f1.mean()),
        geometric_mean=float(known.prod() ** (1 / len(known))),
        macro_geometric_mean=float(np.sqrt(known * specificity[seen]).mean()),
        poor_recall=_mean_of([recalls[label] for label in poor]),
        recalls=tuple(recalls.tolist()),
    )


def _mean_of(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: its mean.
        deviation: its standard deviation; None of one seed.
        low: lower end of the 95% interval of the mean (Student's t); None of one seed.
        high: upper end.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean, deviation and 95% interval of a figure, or of paired differences, over seeds."""
    known, n = np.asarray(values, np.float64), len(values)
    mean = float(known.mean())
    if n < 2 or not np.isfinite(mean):
        return Spread(mean, None, None, None)
    deviation = float(known.std(ddof=1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n)
    return Spread(mean, deviation, mean - half, mean + half)
