"""Every method that the contract is tested on, with a recipe that takes seconds."""

from __future__ import annotations

from collections.abc import Mapping

from toys import TINY_BALAGAN

from rebalance.config import Recipe, build_recipe
from rebalance.learning.batches import Batch
from rebalance.learning.sampling import StageTrainable
from rebalance.methods.base import BuildContext
from rebalance.methods.registry import method_names
from rebalance.runtime.ranks import Ranks
from rebalance.training.examples import example_pools

N_CLASSES = 4
BATCH = 8

# Sections of the methods whose defaults are too large, or that have no defaults.
SECTIONS: dict[str, Mapping[str, object]] = {
    "balagan": TINY_BALAGAN,
    "toy_wrapper": {"inner": {"method": "toy_translator"}},
}
# Methods that the suites take in more than one form.
FORMS: dict[str, tuple[str, Mapping[str, object]]] = {
    "toy_wrapper-balagan": ("toy_wrapper", {"inner": {"method": "balagan", **TINY_BALAGAN}}),
}
ONLY_PER_CLASS = ("toy_directed",)
CASES = (*method_names(), *FORMS)
TOYS = tuple(name for name in method_names() if name.startswith("toy_"))


def recipe_of(case: str, **sections: Mapping[str, object]) -> Recipe:
    """Return a recipe of 8 px images; keyword arguments are merged into its sections."""
    method, own = FORMS.get(case, (case, SECTIONS.get(case, {})))
    values: dict[str, object] = {
        "method": method,
        method: own,
        "data": {"size_px": 8, "channels": 3, "val_fraction": 0.0},
        "features": {"input_px": 32},
        "filtering": {"checks": [], "pool_images": 16, "dimensions": 4, "floor_draws": 3},
        "modalities": {"by": "none"},
        "generation": {"batch": 4, "max_candidates": 3},
        "training": {
            "batch": BATCH, "steps": 3, "precision": "fp32", "memory_format": "contiguous", "threads": 1,
            "models": "per-class" if case in ONLY_PER_CLASS else "joint", "log_every_steps": 1,
            "preview_every_steps": 2, "checkpoint_every_steps": 2, "regularize_every_steps": 2,
        },
        "downstream": {"steps": 10, "width": 4, "blocks": [1, 1], "batch": 16},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build_recipe(values)


def stages_of_case(case: str) -> tuple[str, ...]:
    """Return the names of a case's stages."""
    recipe = recipe_of(case)
    return tuple(stage.name for stage in recipe.options.stages(recipe))


def build(case: str, stage: str | None = None, seed: int = 0, **sections: Mapping[str, object]) -> StageTrainable:
    """Build what a stage trains, the last stage's by default."""
    recipe = recipe_of(case, **sections)
    name = stage or recipe.options.stages(recipe)[-1].name
    return recipe.options.build(BuildContext(recipe, name, tuple(range(N_CLASSES)), seed))


def batch_of(
    case: str, trainable: StageTrainable, step: int = 0, ranks: Ranks | None = None, **sections: Mapping[str, object]
) -> Batch:
    """Return a batch of noise images, as the trainable's own sampler draws it."""
    recipe = recipe_of(case, **sections)
    pools = example_pools(recipe, N_CLASSES)
    return trainable.sampler(pools, recipe.training, recipe.seed, ranks or Ranks())(step)
