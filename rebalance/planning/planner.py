"""From an index and a request to a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from rebalance.config import Recipe
from rebalance.index import ImageIndex
from rebalance.measures.features import FeatureExtractor
from rebalance.planning.balance import resolve_balance
from rebalance.planning.plans import Plan, TargetPlan
from rebalance.planning.sources import _rich_classes, _sources, class_means


def make_plan(
    index: ImageIndex,
    recipe: Recipe,
    extractor: FeatureExtractor,
    balance: str | float | Mapping[str, int] = "auto",
    max_multiple: float | None = None,
) -> Plan:
    """Decide targets, amounts, sources and numbers of modalities.

    Args:
        index: the data set, with a val split.
        recipe: the recipe.
        extractor: features for the distances between classes.
        balance: request as for `parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.

    Raises:
        InputError: as `resolve_balance`, or a target has no class that is rich enough to be its source.
    """
    counts = index.counts("train")
    wanted = resolve_balance(counts, balance, max_multiple)
    rich = {name: _rich_classes(counts, name, recipe) for name in wanted}
    means = class_means(index, recipe, extractor)
    targets = tuple(
        TargetPlan(
            name, index.label(name), counts[name], counts[name] + n, _sources(counts, means, rich[name], name, recipe)
        )
        for name, n in wanted.items()
    )
    text = balance if isinstance(balance, str) else json.dumps(balance)
    return Plan(text, max_multiple, targets, _modality_counts(index, targets, recipe))


def _modality_counts(index: ImageIndex, targets: tuple[TargetPlan, ...], recipe: Recipe) -> dict[str, int]:
    """Return the modalities of each class that takes part: sources and, in the balanced setting, targets are split."""
    options = recipe.modalities
    served: dict[str, int] = {}
    for target in targets:
        for source in target.sources:
            served[source.name] = min(served.get(source.name, target.n_real), target.n_real)
    smallest = min(target.n_real for target in targets)
    numbers = {}
    for name, count in index.counts("train").items():
        if name in served:
            numbers[name] = modality_count(count, served[name], recipe, options.k)
        elif any(target.name == name for target in targets):
            numbers[name] = modality_count(count, smallest, recipe, options.k_target) if options.split_targets else 1
        if options.by == "column" and (name in served or (name in numbers and options.split_targets)):
            numbers[name] = len(np.unique(index.column("sublabel")[index.rows("train", name)].astype(str)))
    return numbers


def modality_count(n_images: int, smallest_target: int, recipe: Recipe, fixed: int | None = None) -> int:
    """k of a class: min(k_max, floor(n / b) + 1, floor(n / min_images)), at least 1; a recipe may fix it.

    Args:
        n_images: train images of the class.
        smallest_target: b, train images of the smallest target that it serves.
        recipe: the recipe.
        fixed: the recipe's own number, capped by the number of images.
    """
    options = recipe.modalities
    if options.by == "none":
        return 1
    if fixed is not None:
        return max(1, min(fixed, n_images))
    return max(1, min(options.k_max, n_images // smallest_target + 1, n_images // options.min_images))
