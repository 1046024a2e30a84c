"""Station 4, the methods: each owns its networks and losses and fits the one training loop."""

from __future__ import annotations

from rebalance.config import Recipe
from rebalance.errors import InputError
from rebalance.methods.balagan import Balagan
from rebalance.methods.base import Method, PairBatch

METHODS: dict[str, type[Method]] = {"balagan": Balagan}
"""Every method, by the name that a recipe calls it."""


def make_method(recipe: Recipe, n_classes: int, *, seed: int) -> Method:
    """Build the recipe's method with freshly drawn weights.

    Args:
        recipe: the recipe.
        n_classes: number of translator classes (modalities and targets).
        seed: seed of the initial weights.

    Raises:
        InputError: the recipe's sizes do not fit each other.
    """
    if recipe.method not in METHODS:
        raise InputError("unknown method", value=recipe.method, allowed=", ".join(METHODS))
    return METHODS[recipe.method].build(recipe, n_classes, seed)


__all__ = ["METHODS", "Balagan", "Method", "PairBatch", "make_method"]
