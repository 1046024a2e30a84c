"""What an image of a class must pass; `fitting` sets the limits.

An image has no FID, but it has an *influence* on one, and there is other evidence. In the order of asking:

    outlier         its Mahalanobis distance is beyond that of 99% of the real images, each seen from all the others, or
                    it is rougher or smoother than they are, which deep features hardly see
    low_confidence  its class is less sure than that of 95% of the class's real images, to the method (where it can
                    tell) and a classifier of real images together; or, where images of the most similar other class
                    are less sure than that, than the middle between the two
    memorised       it is more similar to a train image, or to that moved, flipped or compressed, than 99% of the
                    held-out real images are
    influence       keeping it takes the set's Fréchet distance up by more than the threshold allows
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rebalance import frechet
from rebalance.class_probe import ClassProbe
from rebalance.config import CHECKS
from rebalance.errors import InputError
from rebalance.filtering.bank import Bank, product
from rebalance.filtering.evidence import Evidence
from rebalance.influence import Influence

OUTLIER, LOW_CONFIDENCE, MEMORISED, INFLUENCE = CHECKS
"""The checks, in the order in which an image is asked; the first that it fails is its reason."""

UNMEASURED = -1.0


@dataclass(frozen=True)
class FilterOptions:
    """Which checks are asked, and limits that replace calibrated ones.

    Attributes:
        checks: any of `CHECKS`.
        keep: share of the pool's images, after the other checks, whose influence is allowed; None: calibrated.
        min_confidence: least confidence; None: calibrated.
        max_similarity: largest cosine to a train image; None: calibrated.
    """

    checks: tuple[str, ...] = CHECKS
    keep: float | None = None
    min_confidence: float | None = None
    max_similarity: float | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        for check in self.checks:
            if check not in CHECKS:
                raise InputError("filtering.checks is unknown", value=check, allowed=", ".join(CHECKS))
        limits = {
            "--keep": (self.keep, 0.01, 1.0),
            "--min-confidence": (self.min_confidence, 0.0, 1.0),
            "--max-similarity": (self.max_similarity, -1.0, 1.0),
        }
        for option, (value, least, most) in limits.items():
            if value is not None and not least <= value <= most:
                raise InputError(option, value=value, allowed=f"{least:g} to {most:g}")


@dataclass(frozen=True)
class Scores:
    """What is known of one image; -1 where it was not asked.

    Attributes:
        outlier: Mahalanobis distance over the largest allowed.
        confidence: probability of its class.
        similarity: cosine to the most similar real train image.
        influence: share of the pool with less influence on the Fréchet distance.
    """

    outlier: float = UNMEASURED
    confidence: float = UNMEASURED
    similarity: float = UNMEASURED
    influence: float = UNMEASURED


@dataclass(frozen=True)
class Verdict:
    """Whether an image is kept, and if not, why: the first check that it fails, and all of them."""

    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether it is kept."""
        return not self.reasons

    @property
    def reason(self) -> str:
        """The first reason against it, "" when it is kept."""
        return self.reasons[0] if self.reasons else ""


@dataclass(frozen=True)
class Space:
    """What the filters of several classes share.

    Attributes:
        projection: principal components of the pooled real features.
        whitening: (d, d), makes the pooled within-class covariance there the identity.
        probe: classifier of all classes; None when there is only one.
        image_weight: what one image of those that the whitening was fitted to weighs in that covariance; asked only by
            the fitting.
    """

    projection: frechet.Projection
    whitening: np.ndarray
    probe: ClassProbe | None
    image_weight: float = 0.0


@dataclass(frozen=True)
class ImageFilter:
    """The checks of one class.

    Attributes:
        class_name: the class.
        checks: those that are asked.
        space: projection and classifier.
        mean: (d,) mean of the real train images, whitened.
        precision: (d, d) inverse of their shrunk covariance, whitened.
        max_distance: largest Mahalanobis distance.
        texture: mean of the real images' texture, and how far from it an image may be; empty: not asked.
        min_confidence: least confidence.
        bank: the real train images and their near copies.
        max_similarity: largest cosine to one of them.
        influence: of single images on the Fréchet distance.
        max_influence: largest influence allowed.
        pool: (p,) influences of the pool's images, ascending, each measured from the others.
        notes: what could not be calibrated as it should be.
    """

    class_name: str
    checks: tuple[str, ...]
    space: Space
    mean: np.ndarray
    precision: np.ndarray
    max_distance: float
    texture: tuple[float, ...]
    min_confidence: float
    bank: Bank
    max_similarity: float
    influence: Influence
    max_influence: float
    pool: np.ndarray
    notes: tuple[str, ...] = ()

    def scores(self, evidence: Evidence) -> list[Scores]:
        """Score images, each by itself."""
        centred = from_centre(evidence.features, self.space.projection)
        n, seen = len(centred), product(centred, self._matrix)
        d, r = len(self.mean), self.bank.axes.shape[1]
        small = seen[:, :d]
        outlier = confidence = similarity = influence = np.full(n, UNMEASURED)
        if OUTLIER in self.checks:
            outlier = mahalanobis(small @ self.space.whitening - self.mean, self.precision) / self.max_distance
            if self.texture and evidence.texture is not None:
                mean, most = self.texture
                outlier = np.maximum(outlier, np.abs(evidence.texture - mean) / most)
        if LOW_CONFIDENCE in self.checks:
            probe, logits = self.space.probe, seen[:, d:-r]
            of_probe = probe.among(logits + self._probe_offsets, self.class_name) if probe else np.ones(n)
            confidence = joined(of_probe, evidence.confidence)
        if MEMORISED in self.checks:
            similarity = self.bank.similarity(centred, seen[:, -r:])
        if INFLUENCE in self.checks:
            influence = np.searchsorted(self.pool, self.influence.of(small), side="left") / max(len(self.pool), 1)
        columns = (outlier, confidence, similarity, influence)
        return [Scores(*row) for row in np.round(np.stack(columns, 1), 6).tolist()]

    @cached_property
    def _matrix(self) -> np.ndarray:
        """What features from the pooled mean are multiplied with, side by side: components, classifier, bank."""
        space = self.space
        parts = [space.projection.axes, *([space.probe.weights] if space.probe else []), self.bank.axes]
        return np.concatenate(parts, axis=1).astype(np.float64)

    @cached_property
    def _probe_offsets(self) -> np.ndarray:
        """The classifier's offsets for features from the pooled mean, which is subtracted in float32."""
        probe, centre = self.space.probe, self.space.projection.centre.astype(np.float32)
        return probe.offsets + centre.astype(np.float64) @ probe.weights if probe else np.zeros(0)

    def judge(self, scores: Scores) -> Verdict:
        """Judge an image by its scores and nothing else."""
        failed = {
            OUTLIER: scores.outlier > 1,
            LOW_CONFIDENCE: scores.confidence != UNMEASURED and scores.confidence < self.min_confidence,
            MEMORISED: scores.similarity > self.max_similarity,
            INFLUENCE: scores.influence > self._most_influence,
        }
        return Verdict(tuple(check for check in self.checks if failed[check]))

    @cached_property
    def _most_influence(self) -> float:
        """The limit as a share of the pool, rounded as scores are."""
        return round(float(np.searchsorted(self.pool, self.max_influence, side="right")) / max(len(self.pool), 1), 6)

    def thresholds(self) -> dict[str, Any]:
        """Return what was calibrated, as plain values."""
        return {
            "max_distance": self.max_distance,
            "min_confidence": self.min_confidence,
            "max_similarity": self.max_similarity,
            "keep": self._most_influence if INFLUENCE in self.checks else None,
            "notes": list(self.notes),
        }


def confidence_of(space: Space, name: str, features: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """The classifier's confidence, or its geometric mean with the method's own: each has blind spots of its own."""
    return joined(space.probe.confidence(features, name) if space.probe else np.ones(len(features)), own)


def joined(of_probe: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Join confidences (n,) of the classifier and, where it can tell, of the method itself."""
    return of_probe if own is None else np.sqrt(of_probe * own)


def mahalanobis(centred: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances (n,) of vectors from the mean (n, d), with an inverse covariance (d, d)."""
    return np.sqrt(((centred @ precision) * centred).sum(1).clip(min=0))


def from_centre(features: np.ndarray, projection: frechet.Projection) -> np.ndarray:
    """Return features (n, D) from the pooled mean, float32."""
    return features.astype(np.float32) - projection.centre.astype(np.float32)
