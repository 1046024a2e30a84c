"""Configuration: documented, checked, frozen options, and the recipes that fill them."""

from rebalance.config.balagan import (
    BalaganOptions,
    DiscriminatorOptions,
    GeneratorOptions,
    LossWeights,
)
from rebalance.config.downstream import DownstreamOptions
from rebalance.config.options import Options, changed_keys, option
from rebalance.config.recipe import (
    CHECKS,
    EXTRACTORS,
    DataOptions,
    EncoderOptions,
    FeatureOptions,
    FilteringOptions,
    GenerationOptions,
    ModalityOptions,
    OptimizerOptions,
    PlanOptions,
    Recipe,
    TrainingOptions,
    dump_recipe,
    load_recipe,
    recipe_names,
    recipe_text,
)

__all__ = [
    "CHECKS",
    "EXTRACTORS",
    "BalaganOptions",
    "DataOptions",
    "DiscriminatorOptions",
    "DownstreamOptions",
    "EncoderOptions",
    "FeatureOptions",
    "FilteringOptions",
    "GenerationOptions",
    "GeneratorOptions",
    "LossWeights",
    "ModalityOptions",
    "OptimizerOptions",
    "Options",
    "PlanOptions",
    "Recipe",
    "TrainingOptions",
    "changed_keys",
    "dump_recipe",
    "load_recipe",
    "option",
    "recipe_names",
    "recipe_text",
]
