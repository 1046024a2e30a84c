"""How many images of each kind an arm draws from, class by class, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rebalance.trials.arms import CONTROL, FILTERED, FULL, Arm
from rebalance.trials.batches import Amounts
from rebalance.trials.remedies import REMEDIES, Remedy

_ROUNDING = 1e-9  # a multiple such as 0.1 x 30 is 3 images, though the product is a little less


def amounts_to_draw(remedy: Remedy, n_real: np.ndarray, n_synthetic: np.ndarray, share: float | None = None) -> Amounts:
    """Decide how a remedy draws.

    Args:
        remedy: the remedy.
        n_real: (classes,) real images.
        n_synthetic: (classes,) synthetic images.
        share: share of the draws of a class that has synthetic images; None: in proportion to their number.
    """
    real = remedy.real_counts(n_real, n_synthetic)
    total = real + n_synthetic
    shares = n_synthetic / np.maximum(total, 1)
    if share is not None:
        shares = np.where(n_synthetic > 0, np.where(real > 0, share, 1.0), 0.0)
    mass = remedy.class_mass(total)
    return Amounts(real, n_synthetic, mass / mass.sum(), shares)


def amounts_of(
    arm: Arm, n_real: np.ndarray, available: Mapping[str, np.ndarray], n_counted: np.ndarray, poor: Sequence[int]
) -> Amounts:
    """Decide how an arm of a study draws.

    Args:
        arm: the arm.
        n_real: (classes,) real images that it is trained on.
        available: (classes,) synthetic images, by kind.
        n_counted: (classes,) real images that multiples count.
        poor: labels of the classes that synthetic images were made for.
    """

    def drawn(kind: str, share: float | None) -> Amounts:
        limits = at_most(available[kind], n_counted, arm.multiple or 0.0) if kind else np.zeros_like(n_real)
        return amounts_to_draw(REMEDIES[arm.remedy], n_real, limits, share)

    if arm.synthetic != CONTROL:
        return drawn(arm.synthetic, arm.share)
    # Classes as often as without control images, and as large a share in each, or being synthetic would tell the class.
    like = drawn(FILTERED, arm.share)
    shares = [like.shares[label] for label in poor if like.synthetic[label]]
    return replace(drawn(CONTROL, float(np.mean(shares)) if shares else arm.share), probabilities=like.probabilities)


def at_most(available: np.ndarray, n_counted: np.ndarray, multiple: float) -> np.ndarray:
    """Return how many of each class's images (classes,) int64 a multiple of its real ones allows."""
    if multiple == FULL:
        return available
    allowed: np.ndarray = np.minimum(available, np.floor(n_counted * multiple + _ROUNDING).astype(np.int64))
    return allowed
