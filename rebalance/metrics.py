"""Measures of two sets of features beside the Fréchet distance: kernel distance, neighbourhoods, memorised images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

from rebalance.errors import InputError

NEIGHBOURS = 5
MAX_KERNEL_IMAGES = 5000
MEMORISED_PERCENTILE = 1.0
_BLOCK = 2048
_COPY = 1e-3


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        value: unbiased estimate of the squared maximum mean discrepancy; it may be below 0.
        error: its standard error, by the jackknife.
    """

    value: float
    error: float


@dataclass(frozen=True)
class Neighbourhoods:
    """What the nearest neighbours say of fidelity and variety.

    Attributes:
        precision: share of synthetic images within the reach of a real one (Kynkäänniemi et al., 2019).
        recall: share of real images within the reach of a synthetic one.
        density: real images in whose reach a synthetic one lies, on average, over the number of neighbours
            (Naeem et al., 2020); may exceed 1.
        coverage: share of real images with a synthetic one within their own reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _checked(real: np.ndarray, synthetic: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    for side, features in (("real", real), ("synthetic", synthetic)):
        if len(features) < least:
            raise InputError(f"too few {side} images", value=len(features), allowed=f"{least} or more")
        if not np.isfinite(features).all():
            raise InputError(f"features of {side} images contain values that are not finite")
    return real.astype(np.float64), synthetic.astype(np.float64)


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
    found = []
    for _ in range(draws):
        order = rng.permutation(len(real))
        found.append(abs(kernel_distance(real[order[:half]], real[order[half : 2 * half]], seed).value))
    return float(np.mean(found) * (1 / len(real) + 1 / n_synthetic) / (2 / half))


def _left_out(within: np.ndarray, across: np.ndarray, n_other: int) -> np.ndarray:
    """What the estimate would be without each image of one side, but for a constant."""
    n = len(within)
    return (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * n_other)


def _kernel_sums(rows: np.ndarray, columns: np.ndarray, same: bool) -> np.ndarray:
    """Sum the kernel of each row with all columns, in blocks; without the row itself where both are the same set."""
    sums = np.empty(len(rows))
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        sums[first : first + _BLOCK] = ((block @ columns.T / rows.shape[1] + 1) ** 3).sum(1)
    return sums - (np.square(rows).sum(1) / rows.shape[1] + 1) ** 3 if same else sums


def neighbourhoods(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Neighbourhoods:
    """Return precision, recall, density and coverage; an image's reach is the distance to its k-th neighbour.

    Args:
        real: (n, d) features.
        synthetic: (m, d) features.
        k: neighbours.

    Raises:
        InputError: not more than k images on a side, or values that are not finite.
    """
    real, synthetic = _checked(real, synthetic, k + 1)
    # Centred, because exact search in float32 expands squares.
    centre = real.mean(0)
    first, second = (np.ascontiguousarray(features - centre, np.float32) for features in (real, synthetic))
    reach_first, reach_second = (_nearest(features, features, k + 1)[:, k] for features in (first, second))
    inside, reached = np.zeros(len(second)), np.zeros(len(first), bool)
    for part, distances in _distances(first, second):
        inside += (distances < reach_first[part, None]).sum(0)
        reached[part] = (distances < reach_second[None]).any(1)
    covered = _nearest(second, first, 1)[:, 0] < reach_first
    return Neighbourhoods(
        precision=float((inside > 0).mean()),
        recall=float(reached.mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.mean()),
    )


def _nearest(base: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Squared distances (n, k) from queries to their k nearest of base, ascending."""
    return faiss.knn(queries, base, k)[0].clip(min=0)


def _distances(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield squared distances from blocks of one set to all of the other."""
    for start in range(0, len(first), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield part, faiss.pairwise_distances(first[part], second).clip(min=0)


def nearest_distances(train: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return each image's distance (n,) to its nearest train image."""
    centre = train.mean(0, dtype=np.float64)
    base, queries = (np.ascontiguousarray(x - centre, np.float32) for x in (train, features))
    return np.sqrt(_nearest(base, queries, 1)[:, 0])


def memorised_share(train: np.ndarray, held_out: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the share of synthetic images that lie nearer to a train image than 99% of held-out real ones do.

    Held-out images that are themselves copies of train images say nothing of that and are left out.
    """
    distances = nearest_distances(train, held_out)
    own = distances[distances > _COPY * np.median(distances)]
    threshold = np.percentile(own, MEMORISED_PERCENTILE) if len(own) else np.inf
    return float((nearest_distances(train, synthetic) < threshold).mean())


def at_most(rows: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Return at most n rows of an array, drawn by a key, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(key).choice(len(rows), n, replace=False))]
