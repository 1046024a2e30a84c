"""How many images of each kind an arm draws from, class by class, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rebalance.trials.arms import CONTROL, FILTERED, FULL, OVERSAMPLING, SMOTE, Arm


@dataclass(frozen=True)
class Amounts:
    """What an arm draws from.

    Attributes:
        real: (classes,) int64 real images, with SMOTE's where the arm has them.
        synthetic: (classes,) int64 synthetic images.
        probabilities: (classes,) of a class.
        shares: (classes,) of the class's draws that are synthetic.
    """

    real: np.ndarray
    synthetic: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray


def amounts(n_real: np.ndarray, n_synthetic: np.ndarray, share: float | None, balanced: bool, filled: bool) -> Amounts:
    """Decide how an arm draws.

    Args:
        n_real: (classes,) real images.
        n_synthetic: (classes,) synthetic images.
        share: share of the draws of a class that has synthetic images; None: as they are many.
        balanced: every class as often, instead of every image.
        filled: SMOTE fills up what synthetic images leave of the way to the largest class, and every class is drawn as
            often, also one that has more synthetic images than that.
    """
    real = np.where(n_real > 0, np.maximum(n_real, n_real.max() - n_synthetic), 0) if filled else n_real
    total = real + n_synthetic
    shares = n_synthetic / np.maximum(total, 1)
    if share is not None:
        shares = np.where(n_synthetic > 0, np.where(real > 0, share, 1.0), 0.0)
    mass = (total > 0).astype(np.float64) if balanced or filled else total.astype(np.float64)
    return Amounts(real, n_synthetic, mass / mass.sum(), shares)


def amounts_of(
    arm: Arm, n_real: np.ndarray, available: Mapping[str, np.ndarray], n_counted: np.ndarray, poor: Sequence[int]
) -> Amounts:
    """Decide how an arm of a study draws.

    Args:
        arm: the arm.
        n_real: (classes,) real images that it is trained on.
        available: (classes,) synthetic images, by origin.
        n_counted: (classes,) real images that multiples count.
        poor: labels of the classes that synthetic images were made for.
    """

    def drawn(origin: str, share: float | None) -> Amounts:
        limits = at_most(available[origin], n_counted, arm.multiple or 0.0) if origin else np.zeros_like(n_real)
        return amounts(n_real, limits, share, arm.remedy == OVERSAMPLING, arm.remedy == SMOTE)

    if arm.synthetic != CONTROL:
        return drawn(arm.synthetic, arm.share)
    # Classes as often as without it, and as large a share in each, or being synthetic would tell something.
    like = drawn(FILTERED, arm.share)
    shares = [like.shares[label] for label in poor if like.synthetic[label]]
    return replace(drawn(CONTROL, float(np.mean(shares)) if shares else arm.share), probabilities=like.probabilities)


def at_most(available: np.ndarray, n_counted: np.ndarray, multiple: float) -> np.ndarray:
    """Return how many of each class's images (classes,) int64 a multiple of its real ones allows."""
    if multiple == FULL:
        return available
    return np.minimum(available, np.floor(n_counted * multiple + 1e-9).astype(np.int64))
