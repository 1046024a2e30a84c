"""The filter of a class's single images: it scores them by every check, and judges them by their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rebalance import storage
from rebalance.filtering.checks import REGISTRY, check_named
from rebalance.filtering.checks.base import FittedCheck, ScoredBatch
from rebalance.filtering.evidence import Evidence
from rebalance.filtering.space import Space, float64_product

UNMEASURED = -1.0
"""The score of a check that was not asked."""

_DIGITS = 6
"""Decimals of a score: what a verdict sees is what a record holds."""


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """The scores of one image by their names, -1 where a check was not asked.

    Attributes:
        measured: those that were asked.
    """

    measured: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """Return a score."""
        if name not in self.measured and all(name != check.score_name for check in REGISTRY.values()):
            raise KeyError(name)
        return self.measured.get(name, UNMEASURED)

    def __iter__(self) -> Iterator[str]:
        """Return the names of all scores, in the registered order."""
        return (check.score_name for check in REGISTRY.values())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(REGISTRY)

    def to_json(self) -> dict[str, float]:
        """Return all scores as plain values."""
        return dict(self)


@dataclass(frozen=True)
class Verdict:
    """The verdict on an image: the checks that it fails, in order; none for one that is kept."""

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
class ImageFilter:
    """The checks of one class.

    Attributes:
        class_name: the class.
        space: components, whitening and classifier.
        checks: the fitted checks by name, in the registered order.
        notes: what could not be calibrated as it should be.
    """

    class_name: str
    space: Space
    checks: Mapping[str, FittedCheck]
    notes: tuple[str, ...] = ()

    def scores(self, evidence: Evidence) -> list[Scores]:
        """Score images, each by itself."""
        centred = self.space.centred(evidence.features)
        product = float64_product(centred, self._matrix)
        components = product[:, : self.space.projection.axes.shape[1]]
        names, columns = [], []
        for name, check in self.checks.items():
            batch = ScoredBatch(evidence, centred, components, product[:, self._columns[name]])
            names.append(check_named(name).score_name)
            columns.append(np.round(np.asarray(check.score(batch), np.float64), _DIGITS).tolist())
        if not columns:
            return [Scores()] * len(centred)
        return [Scores(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]

    @cached_property
    def _matrix(self) -> np.ndarray:
        """The matrix (D, d + k) that centred features are multiplied with: components, then each check's columns.

        One product costs less than one a check.
        """
        own = [columns for columns in (check.columns() for check in self.checks.values()) if columns is not None]
        return np.concatenate([self.space.projection.axes, *own], axis=1).astype(np.float64)

    @cached_property
    def _columns(self) -> dict[str, slice]:
        """Where the columns of each check stand in the product; empty for a check without any."""
        places, first = {}, self.space.projection.axes.shape[1]
        for name, check in self.checks.items():
            own = check.columns()
            width = 0 if own is None else own.shape[1]
            places[name] = slice(first, first + width)
            first += width
        return places

    def judge(self, scores: Scores) -> Verdict:
        """Judge an image by its scores and nothing else."""
        named = ((name, check, scores[check_named(name).score_name]) for name, check in self.checks.items())
        return Verdict(tuple(name for name, check, score in named if score != UNMEASURED and check.fails(score)))

    def thresholds(self) -> dict[str, Any]:
        """Return the limit of every registered check, None where it is not asked, and the notes."""
        limits = {
            check.threshold_name: self.checks[name].threshold if name in self.checks else None
            for name, check in REGISTRY.items()
        }
        return {**limits, "notes": list(self.notes)}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that decides a verdict."""
        space, probe = self.space, self.space.probe
        arrays = [space.projection.centre, space.projection.axes, space.whitening]
        arrays += [probe.weights, probe.offsets] if probe else []
        arrays += [array for check in self.checks.values() for _, array in sorted(check.arrays().items())]
        numbers = [[name, check.numbers()] for name, check in self.checks.items()]
        texts = [storage.canonical_json([numbers, list(self.notes), list(probe.names) if probe else []])]
        texts += [storage.sha256_bytes(np.ascontiguousarray(array).tobytes()) for array in arrays]
        return storage.sha256_bytes("/".join(texts).encode())
