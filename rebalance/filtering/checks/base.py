"""The contract of a check of single images, and of a check that is fitted to a class."""

from __future__ import annotations

import enum
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rebalance.errors import InputError
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.space import Space

logger = logging.getLogger(__name__)

LEAST_HELD_OUT = 30
"""Held-out images from which on they set limits themselves; train images stand in for fewer, see the README."""

KEPT_OF_REAL = 0.99
"""Share of the real images that the limits on outliers and on similarity let pass: one false rejection in a hundred."""


class Need(enum.Enum):
    """Evidence on real images that costs time, so that it is measured only for a check that asks for it."""

    COPIES = "features of near copies of the train images"
    OWN_CONFIDENCE = "the method's own confidence in held-out images"
    OTHER_CLASSES = "features of val images of all classes, and the method's own confidence in them"


@dataclass(frozen=True)
class Limit:
    """A limit that a user may give in place of the calibrated one.

    Attributes:
        parameter: name of the public functions' parameter.
        least: smallest value allowed.
        most: largest value allowed.
    """

    parameter: str
    least: float
    most: float

    def check(self, value: float) -> None:
        """Check the range.

        Raises:
            InputError: the value lies outside; the message names the parameter.
        """
        if not self.least <= value <= self.most:
            raise InputError(f"`{self.parameter}`", value=value, allowed=f"{self.least:g} to {self.most:g}")


@dataclass(frozen=True)
class ClassMaterial:
    """What a check is fitted to.

    Attributes:
        class_name: the class.
        real: the real features.
        space: of `fit_space` on the same.
        pool: p candidates of the class.
        limit: what the user asks for in place of a calibrated limit; None: calibrate it.
        seed: seed of all draws.
        survivors: (p,) bool, candidates that pass the checks that do not ask for this; all, while these are fitted.
        notes: what could not be calibrated as it should be; `note` adds to it.
    """

    class_name: str
    real: RealFeatures
    space: Space
    pool: Evidence
    limit: float | None
    seed: int
    survivors: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def train(self) -> np.ndarray:
        """Features (n, D) of the class's train images."""
        return self.real.train[self.class_name]

    @property
    def held_out(self) -> np.ndarray:
        """Features (m, D) of the class's held-out images."""
        return self.real.held_out.get(self.class_name, np.zeros((0, self.pool.features.shape[1])))

    @property
    def has_held_out(self) -> bool:
        """Whether enough images are held out to set limits by them."""
        return len(self.held_out) >= LEAST_HELD_OUT

    def note(self, text: str) -> None:
        """Record what could not be calibrated as it should be, and log it."""
        self.notes.append(text)
        logger.warning("class %r: %s", self.class_name, text)


@dataclass(frozen=True)
class ScoredBatch:
    """Images as a fitted check scores them.

    Attributes:
        evidence: what is measured of them.
        centred: (n, D) float32 features less the pooled mean.
        components: (n, d) float64, these in principal components.
        own: (n, k) float64, these times the check's own `columns`; (n, 0) without any.
    """

    evidence: Evidence
    centred: np.ndarray
    components: np.ndarray
    own: np.ndarray


class FittedCheck(ABC):
    """A check with the limit of a class. It scores images one by one and judges them by that score alone."""

    @property
    @abstractmethod
    def threshold(self) -> float:
        """The limit, as `thresholds` shows it."""

    def columns(self) -> np.ndarray | None:
        """Return the matrix (D, k) that the check multiplies centred features with; None for components alone.

        One product takes a batch to the components and to every check's columns.
        """
        return None

    @abstractmethod
    def score(self, batch: ScoredBatch) -> np.ndarray:
        """Return the score (n,) of each image, by itself."""

    @abstractmethod
    def fails(self, score: float) -> bool:
        """Return whether an image with this score is rejected."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store."""
        return {}

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Return the other values to store, as JSON has them."""


@dataclass(frozen=True)
class StoredCheck:
    """A fitted check as it was stored: its class, what the filters share, its arrays and numbers."""

    class_name: str
    space: Space
    arrays: Mapping[str, np.ndarray]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Fit:
    """Result of fitting a check.

    Attributes:
        check: the fitted check.
        survivors_fail: (s,) bool, which of the pool's survivors fail where their scores would be biased, because the
            check was fitted to them; None: judge them by their scores.
    """

    check: FittedCheck
    survivors_fail: np.ndarray | None = None


class Check(ABC):
    """A check of single images: what it is called, what it needs, and how it is fitted to a class.

    Attributes:
        name: the check, which is also the reason of a rejection.
        score_name: its score in records.
        score_doc: the meaning of the score, for the card of an output.
        threshold_name: its limit in `thresholds`.
        limit: what a user may give in place of the calibrated limit; None: nothing.
        after_others: whether it is fitted to the candidates that pass the checks without this.
        pixel_measures: values (n,) that are measured on images (n, H, W, C) uint8, by name.
    """

    name: ClassVar[str]
    score_name: ClassVar[str]
    score_doc: ClassVar[str]
    threshold_name: ClassVar[str]
    limit: ClassVar[Limit | None] = None
    after_others: ClassVar[bool] = False
    pixel_measures: ClassVar[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {}

    def needs(self, limit: float | None) -> frozenset[Need]:
        """Return what must be measured of real images, given the user's limit."""
        return frozenset()

    @abstractmethod
    def fit(self, material: ClassMaterial) -> Fit | None:
        """Fit the check to a class; None where it cannot be, which is noted."""

    @abstractmethod
    def restored(self, stored: StoredCheck) -> FittedCheck:
        """Rebuild a fitted check from its `arrays` and `numbers`."""
