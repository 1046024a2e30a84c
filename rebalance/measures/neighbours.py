"""Nearest neighbours of two sets of features: precision, recall, density, coverage, memorised images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

from rebalance.measures.sets import _BLOCK, _checked

NEIGHBOURS = 5
MEMORISED_PERCENTILE = 1.0
_COPY = 1e-3


@dataclass(frozen=True)
class Neighbourhoods:
    """Fidelity and variety by nearest neighbours.

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
    """Return squared distances (n, k) from queries to their k nearest of base, ascending."""
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
