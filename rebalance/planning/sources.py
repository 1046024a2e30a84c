"""Which rich classes serve a target: those with enough images, the nearest first."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rebalance.config import Recipe
from rebalance.errors import InputError
from rebalance.index import ImageIndex
from rebalance.index.features import real_features
from rebalance.measures.features import FeatureExtractor
from rebalance.planning.plans import SourcePlan


def class_means(index: ImageIndex, recipe: Recipe, extractor: FeatureExtractor) -> dict[str, np.ndarray]:
    """Return each class's mean feature vector over a seeded draw of its train images; empty classes are left out."""
    means = {}
    for label, name in enumerate(index.classes):
        rows = index.rows("train", name)
        if len(rows):
            drawn = np.random.default_rng((recipe.seed, label)).permutation(rows)[: recipe.plan.feature_images]
            means[name] = real_features(index, np.sort(drawn), recipe.data, extractor).mean(0)
    return means


def _rich_classes(counts: Mapping[str, int], target: str, recipe: Recipe) -> list[str]:
    least = recipe.plan.source_ratio * counts[target]
    rich = [name for name, count in counts.items() if name != target and count >= least]
    if not rich and recipe.options.needs_rich_class:
        raise InputError(
            f"class {target!r} with {counts[target]} images has no source",
            allowed=f"another class with at least {math.ceil(least)} usable train images",
            remedy="Name poorer targets with `balance`, or lower plan.source_ratio",
        )
    return rich


def _sources(
    counts: Mapping[str, int], means: Mapping[str, np.ndarray], rich: list[str], target: str, recipe: Recipe
) -> tuple[SourcePlan, ...]:
    sources = [
        SourcePlan(name, counts[name], round(float(np.linalg.norm(means[name] - means[target])), 4)) for name in rich
    ]
    sources.sort(key=lambda source: source.distance)
    ratio = recipe.plan.max_distance_ratio
    if ratio is not None:
        sources = [source for source in sources if source.distance <= ratio * sources[0].distance]
    return tuple(sources[: recipe.plan.n_sources])
