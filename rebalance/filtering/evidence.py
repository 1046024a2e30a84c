"""What is measured of images before they are judged, real ones and candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rebalance.measures.class_probe import held_out_confidence


@dataclass(frozen=True)
class RealFeatures:
    """What is measured of the real images that filters are fitted to, by class; checks do without what is missing.

    Attributes:
        train: (n, D) features of every class that takes part.
        held_out: (m, D) of their val images, which no fit has seen.
        copies: (c, n, D) features of c near copies of each train image.
        measured: (n,) values of train images, by the name of what is measured on pixels, then by class.
        confidence: (m,) of held-out images, the method's own.
        others: (k, D) of some val images of every class that has any, for the confidence of other classes' images.
        others_confidence: (k,) of these by the method itself, by the class that is asked for, then by their own.
    """

    train: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]
    copies: Mapping[str, np.ndarray] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    confidence: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    others_confidence: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    _unseen: dict[int, dict[str, dict[str, np.ndarray]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def unseen_confidence(self, name: str, of: str, seed: int) -> np.ndarray:
        """Return the confidence (n,) in a class by classifiers that have not seen the images; measured once for all.

        Args:
            name: the class that is asked for; there must be another.
            of: the class of the train images.
            seed: seed of the folds.
        """
        if seed not in self._unseen:
            self._unseen[seed] = held_out_confidence(self.train, seed)
        return self._unseen[seed][name][of]


@dataclass(frozen=True)
class Evidence:
    """What is measured of candidates before they are judged.

    Attributes:
        features: (n, D).
        measured: (n,) values by the name of what is measured on pixels; checks do without what is missing.
        confidence: (n,) probability of their class by the method itself; None where it cannot tell.
    """

    features: np.ndarray
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    confidence: np.ndarray | None = None


def concatenated(parts: Sequence[Evidence]) -> Evidence:
    """Return the evidence on batches of candidates as that on one; all parts hold the same kinds."""
    confidences = [part.confidence for part in parts if part.confidence is not None]
    return Evidence(
        np.concatenate([part.features for part in parts]),
        {name: np.concatenate([part.measured[name] for part in parts]) for name in parts[0].measured},
        np.concatenate(confidences) if len(confidences) == len(parts) else None,
    )
