"""Spherical k-means: the same clusters on any number of cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import faiss
import numpy as np


def cluster(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return labels (n,) int64 of spherical k-means (faiss), the largest cluster 0; empty clusters vanish.

    Args:
        features: (n, d) float32, L2-normalised.
        k: clusters wanted.
        seed: seed of the initial centroids.
    """
    features = np.ascontiguousarray(features, np.float32)
    kmeans = faiss.Kmeans(
        features.shape[1], k, niter=50, nredo=5, seed=seed, spherical=True, min_points_per_centroid=1,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        max_points_per_centroid=max(256, -(-len(features) // k)),
    )  # fmt: skip
    with _one_thread():
        kmeans.train(features)
        labels = kmeans.index.search(features, 1)[1][:, 0]
    clusters, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(clusters), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(clusters))
    return rank[inverse]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run faiss on one thread: the same sums, and so the same clusters, on any number of cores.

    The number is put back because faiss may share its OpenMP runtime with torch.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
