"""KID: the kernel distance between two sets of features, and its floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance.measures.sets import _BLOCK, _checked, at_most

MAX_KERNEL_IMAGES = 5000


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        value: unbiased estimate of the squared maximum mean discrepancy; it may be below 0.
        error: its standard error, by the jackknife.
    """

    value: float
    error: float


def kernel_distance(real: np.ndarray, synthetic: np.ndarray, seed: int = 0) -> KernelDistance:
    """Return KID (Binkowski et al., 2018): squared MMD under the kernel (x.y / d + 1)^3.

    All pairs count once, where the paper averages over random subsets; so it depends on no draw, but for a seeded one
    of 5,000 images where there are more. The jackknife leaves out one image at a time, on either side.

    Args:
        real: (n, d) features.
        synthetic: (m, d) features.
        seed: seed of that draw.

    Raises:
        InputError: fewer than 3 images on a side, or values that are not finite.
    """
    real, synthetic = _checked(real, synthetic, 3)
    first, second = (at_most(x, MAX_KERNEL_IMAGES, seed, side) for side, x in enumerate((real, synthetic)))
    n, m = len(first), len(second)
    within_first, within_second = _kernel_sums(first, first, True), _kernel_sums(second, second, True)
    across_first, across_second = _kernel_sums(first, second, False), _kernel_sums(second, first, False)
    across = across_first.sum()
    value = within_first.sum() / (n * (n - 1)) + within_second.sum() / (m * (m - 1)) - 2 * across / (n * m)
    left_out_of_first = _left_out(within_first, across_first, m)
    left_out_of_second = _left_out(within_second, across_second, n)
    variance = sum((len(x) - 1) * x.var() for x in (left_out_of_first, left_out_of_second))
    return KernelDistance(float(value), float(np.sqrt(variance)))


def kernel_floor(real: np.ndarray, n_synthetic: int, draws: int, seed: int) -> float:
    """Return the mean size of KID between real images, for a real set of this size and so many others.

    Measured between random halves, and scaled: between sets of one distribution it shrinks as 1/n + 1/m.

    Args:
        real: (n, d) features, 6 or more.
        n_synthetic: m.
        draws: number of halvings.
        seed: their seed.
    """
    rng, half = np.random.default_rng(seed), len(real) // 2
    distances = []
    for _ in range(draws):
        order = rng.permutation(len(real))
        distances.append(abs(kernel_distance(real[order[:half]], real[order[half : 2 * half]], seed).value))
    return float(np.mean(distances) * (1 / len(real) + 1 / n_synthetic) / (2 / half))


def _left_out(within: np.ndarray, across: np.ndarray, n_other: int) -> np.ndarray:
    """Return the leave-one-out estimates of one side, but for a constant."""
    n = len(within)
    return (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * n_other)


def _kernel_sums(rows: np.ndarray, columns: np.ndarray, same: bool) -> np.ndarray:
    """Sum the kernel of each row with all columns, in blocks; without the row itself where both are the same set."""
    sums = np.empty(len(rows))
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        sums[first : first + _BLOCK] = ((block @ columns.T / rows.shape[1] + 1) ** 3).sum(1)
    return sums - (np.square(rows).sum(1) / rows.shape[1] + 1) ** 3 if same else sums
