"""Reject images of whose class the method and a classifier of real images are too unsure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rebalance.filtering.checks.base import (
    LEAST_HELD_OUT,
    Check,
    ClassMaterial,
    Fit,
    FittedCheck,
    Limit,
    Need,
    ScoredBatch,
    StoredCheck,
)
from rebalance.filtering.limits import limit_of_next, log_odds_of, probability_of, rank_of_next
from rebalance.filtering.space import Space

# Share of unseen real images that reach the least confidence; classifiers err on real images more often than one in 99.
_CONFIDENT_OF_REAL = 0.95
# More than an even chance is never asked for: real images that every classifier is sure of would set a limit near 1.
_MOST_CONFIDENCE = 0.5
# Share of each other class's images that must stay below the limit; the tenth may truly look like this class.
_UNSURE_OF_OTHERS = 0.9
# Deviation of log-odds that few values are held towards: probabilities near 1 vary by about a factor of e in odds.
_LOG_ODDS_DEVIATION = 1.0


@dataclass(frozen=True)
class FittedLowConfidence(FittedCheck):
    """The least confidence of a class.

    Attributes:
        class_name: the class.
        space: with the classifier.
        min_confidence: the least confidence.
    """

    class_name: str
    space: Space
    min_confidence: float

    @property
    def threshold(self) -> float:
        """The least confidence."""
        return self.min_confidence

    def columns(self) -> np.ndarray | None:
        """Return the classifier's weights."""
        return self.space.probe.weights if self.space.probe else None

    @cached_property
    def _offsets(self) -> np.ndarray:
        """The classifier's offsets for features from the pooled mean, which is subtracted in float32."""
        probe = self.space.probe
        return probe.offsets + self.space.centre.astype(np.float64) @ probe.weights if probe else np.zeros(0)

    def score(self, batch: ScoredBatch) -> np.ndarray:
        """Return the probability of the class."""
        probe = self.space.probe
        of_probe = probe.among(batch.own + self._offsets, self.class_name) if probe else np.ones(len(batch.centred))
        return combined_confidence(of_probe, batch.evidence.confidence)

    def fails(self, score: float) -> bool:
        """Return whether it is below the least confidence."""
        return score < self.min_confidence

    def numbers(self) -> dict[str, Any]:
        """Return the numbers to store."""
        return {"min_confidence": self.min_confidence}


class LowConfidenceCheck(Check):
    """Reject what fewer than 5% of unseen real images would be: so unlikely of their class.

    The method's own class head and a classifier of the features judge together.
    """

    name = "low_confidence"
    score_name = "confidence"
    score_doc = "probability of the class"
    threshold_name = "min_confidence"
    limit = Limit("min_confidence", 0.0, 1.0)

    def needs(self, limit: float | None) -> frozenset[Need]:
        """Return the method's confidence, and other classes where the limit is calibrated."""
        return frozenset({Need.OWN_CONFIDENCE} if limit is not None else {Need.OWN_CONFIDENCE, Need.OTHER_CLASSES})

    def fit(self, material: ClassMaterial) -> Fit:
        """Take the least confidence that is given, or calibrate it."""
        least = _least_confidence(material) if material.limit is None else material.limit
        return Fit(FittedLowConfidence(material.class_name, material.space, least))

    def restored(self, stored: StoredCheck) -> FittedLowConfidence:
        """Rebuild the fitted check."""
        return FittedLowConfidence(stored.class_name, stored.space, stored.numbers["min_confidence"])


def combined_confidence(of_probe: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Return the geometric mean (n,) of the classifier's confidence and the method's own, where it can tell.

    Each has blind spots of its own.
    """
    return of_probe if own is None else np.sqrt(of_probe * own)


def _confidence(space: Space, name: str, features: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    return combined_confidence(space.probe.confidence(features, name) if space.probe else np.ones(len(features)), own)


def _least_confidence(material: ClassMaterial) -> float:
    """Return what 95% of real images reach by classifiers that have not seen them.

    Where nine in ten images of every other class stay below that, return the middle between the two, in log-odds:
    classifiers that know few images are unsure of the next ones, even of those that nobody would mistake.
    """
    if material.space.probe is None:
        return 0.0
    own = material.pool.confidence is not None
    if material.has_held_out:
        of_method = material.real.confidence.get(material.class_name) if own else None
        unseen = _confidence(material.space, material.class_name, material.held_out, of_method)
    else:
        unseen = _unseen_confidence(material, material.class_name, own)
    limit = limit_of_next(-log_odds_of(unseen), _CONFIDENT_OF_REAL, _LOG_ODDS_DEVIATION)
    reached = min(probability_of(-limit), _MOST_CONFIDENCE)
    of_others = _confidence_of_others(material, own)
    if of_others >= reached:
        return reached
    return probability_of((log_odds_of(reached) + log_odds_of(of_others)) / 2)


def _unseen_confidence(material: ClassMaterial, of: str, own: bool) -> np.ndarray:
    """Return the confidence in this class for train images of a class, by classifiers that have not seen them.

    The method has seen them all, so its own confidence counts as 1.
    """
    unseen = material.real.unseen_confidence(material.class_name, of, material.seed)
    return np.sqrt(unseen) if own else unseen


def _confidence_of_others(material: ClassMaterial, own: bool) -> float:
    """Return what nine in ten images of the most similar other class stay below; 1 where it is not known.

    They are val images; of a class without any, train images by classifiers that have not seen them. A class of a
    single image says nothing.
    """
    real, name = material.real, material.class_name
    by_method = real.others_confidence.get(name)
    if not real.others or (own and by_method is None):
        return 1.0
    confidences = []
    for other in real.train:
        if other == name:
            continue
        if other in real.others:
            of_method = by_method[other] if own and by_method is not None else None
            confidences.append(_confidence(material.space, name, real.others[other], of_method))
        elif len(real.train[other]) > 1:
            confidences.append(_unseen_confidence(material, other, own))
    if sum(map(len, confidences)) < LEAST_HELD_OUT:
        return 1.0
    return max(float(np.sort(of)[min(rank_of_next(len(of), _UNSURE_OF_OTHERS), len(of)) - 1]) for of in confidences)
