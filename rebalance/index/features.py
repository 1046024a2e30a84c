"""Features of a data set's images, for whoever compares classes or sets of them."""

from __future__ import annotations

import numpy as np
import PIL

from rebalance.config import DataOptions
from rebalance.index.image_index import ImageIndex
from rebalance.measures.features import FeatureExtractor


def real_features(index: ImageIndex, rows: np.ndarray, options: DataOptions, extractor: FeatureExtractor) -> np.ndarray:
    """Return features (n, d) float32 of real images as the model's squares, from the user's cache where they are in it.

    Args:
        index: the data set.
        rows: (n,) int64, ids of usable images.
        options: how an image becomes a square.
        extractor: the features.
    """
    view = f"{options.size_px} {options.channels} {options.square} {PIL.__version__}"
    keys = [f"{content} {view}" for content in index.column("hash")[rows]]
    return extractor.extract_cached(keys, (index.square(int(row), options) for row in rows))
