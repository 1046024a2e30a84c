"""Pools of noise images, on which steps are counted and timed before any data is decoded."""

from __future__ import annotations

import numpy as np

from rebalance.config import Recipe
from rebalance.learning.image_store import ImageStore
from rebalance.learning.sampling import ClassPool, TrainingPools

_IMAGES = 64


def example_pools(recipe: Recipe, n_classes: int) -> TrainingPools:
    """Return pools of `n_classes` translator classes, the first of which is a target, over a few noise images."""
    size = recipe.data.size_px
    pixels = np.random.default_rng(recipe.seed).integers(0, 256, (_IMAGES, size, size, recipe.data.channels), np.uint8)
    store = ImageStore(np.arange(_IMAGES), pixels)
    every = np.arange(_IMAGES)
    classes = tuple(ClassPool(str(label), (label,), (every,)) for label in range(n_classes))
    related = np.ones((n_classes, n_classes), bool)
    names = tuple(pool.name for pool in classes)
    return TrainingPools(store, classes, related, {names[0]: names[1:] or names})
