"""Reject images that are copies of train images, or nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rebalance.filtering.checks.base import (
    KEPT_OF_REAL,
    Check,
    ClassMaterial,
    Fit,
    FittedCheck,
    Limit,
    Need,
    ScoredBatch,
    StoredCheck,
)
from rebalance.filtering.limits import limit_of_next
from rebalance.filtering.space import float64_product
from rebalance.filtering.train_features import TrainFeatures, fit_train_features
from rebalance.measures.sets import at_most

# With few held-out images, the share of a train image's near copies that may pass: the least alike tenth of them.
_MISSED_COPIES = 0.1
# Cosines above are those of the same image but for rounding; they say nothing of how near other images come.
_SAME_IMAGE = 1 - 1e-6
# Of -log(1 - cosine) of real images to the nearest other one; 0.3 to 0.4 for shirts, sneakers, bags and boots.
_NEARNESS_DEVIATION = 0.35
# Train images that are compared with the others, at most: a limit at 99% is no better known from more.
_MOST_LEFT_OUT = 2000


@dataclass(frozen=True)
class FittedMemorised(FittedCheck):
    """The train images of a class, and how similar to one an image may be.

    Attributes:
        train_features: train images and their near copies.
        max_similarity: largest cosine to one of them.
    """

    train_features: TrainFeatures
    max_similarity: float

    @property
    def threshold(self) -> float:
        """The largest cosine."""
        return self.max_similarity

    def columns(self) -> np.ndarray:
        """Return the components of the train features."""
        return self.train_features.axes

    def score(self, batch: ScoredBatch) -> np.ndarray:
        """Return the cosine to the most similar row."""
        return self.train_features.similarity(batch.centred, batch.own)

    def fails(self, score: float) -> bool:
        """Return whether it is above the largest similarity."""
        return score > self.max_similarity

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store."""
        return {"rows": self.train_features.rows, "axes": self.train_features.axes}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers to store."""
        return {"max_similarity": self.max_similarity}


class MemorisedCheck(Check):
    """Reject what is more similar to a train image, or a near copy of one, than 99% of held-out real images."""

    name = "memorised"
    score_name = "similarity"
    score_doc = "cosine to the most similar real train image"
    threshold_name = "max_similarity"
    limit = Limit("max_similarity", -1.0, 1.0)

    def needs(self, limit: float | None) -> frozenset[Need]:
        """Return near copies."""
        return frozenset({Need.COPIES})

    def fit(self, material: ClassMaterial) -> Fit:
        """Keep the train features; take the largest similarity that is given, or calibrate it."""
        centred = material.space.centred(material.train)
        copies = material.real.copies.get(material.class_name)
        rows = fit_train_features(centred, copies, material.space.centre, material.seed)
        limit = _largest_similarity(material, rows, centred) if material.limit is None else material.limit
        return Fit(FittedMemorised(rows, limit))

    def restored(self, stored: StoredCheck) -> FittedMemorised:
        """Rebuild the fitted check."""
        rows = TrainFeatures(stored.arrays["rows"], stored.arrays["axes"])
        return FittedMemorised(rows, stored.numbers["max_similarity"])


def _largest_similarity(material: ClassMaterial, rows: TrainFeatures, centred_train: np.ndarray) -> float:
    """Return what the similarity of the next real image to train images stays within by 99%.

    With few held-out images, train images tell it, each by the others; what most near copies reach is allowed too.
    """
    allowed = -1.0
    if material.has_held_out:
        centred = material.space.centred(material.held_out)
        nearest = rows.similarity(centred, float64_product(centred, rows.axes))
    else:
        material.note(f"{len(material.held_out)} held-out images are too few: memorised is judged by train images")
        nearest, of_copies = _left_out_similarities(rows, centred_train, material.seed)
        of_copies = of_copies[of_copies < _SAME_IMAGE]
        if of_copies.size:
            # Few neighbours say little of how near real images come; what is as near as most copies is one.
            allowed = float(np.quantile(of_copies, _MISSED_COPIES))
    # A pair of real images that are nearly the same says nothing of the next one, so the largest sets no limit.
    nearness = -np.log1p(-nearest[nearest < _SAME_IMAGE].astype(np.float64))
    limit = limit_of_next(nearness, KEPT_OF_REAL, _NEARNESS_DEVIATION, at_least_largest=False)
    return min(max(float(-np.expm1(-limit)), allowed), _SAME_IMAGE)


def _left_out_similarities(rows: TrainFeatures, centred: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines of train images to the nearest of the others (m,), and to their own copies (c, m)."""
    n = len(centred)
    drawn = at_most(np.arange(n), _MOST_LEFT_OUT, seed)
    own = drawn[:, None] + np.arange(0, len(rows.rows), n)
    nearest = rows.similarity(centred[drawn], float64_product(centred[drawn], rows.axes), own)
    itself = rows.rows_at(drawn)
    of_copies = [np.einsum("nd,nd->n", itself, rows.rows_at(kind)) for kind in own.T[1:]]
    return nearest, np.array(of_copies)
