"""Configuration: documented, checked, frozen options, and the recipes that fill them."""

from rebalance.config.method import MethodOptions
from rebalance.config.options import Options, changed_keys, option
from rebalance.config.recipe import Recipe, build_recipe, dump_recipe, load_recipe, recipe_names, recipe_text
from rebalance.config.requests import FeatureChoice, FilterChoice, OutputOptions, StudyOptions
from rebalance.config.sections import (
    AUGMENTATIONS,
    EXTRACTORS,
    DataOptions,
    EncoderOptions,
    FeatureOptions,
    FilteringOptions,
    GenerationOptions,
    ModalityOptions,
    OptimizerOptions,
    PlanOptions,
    TrainingOptions,
)
from rebalance.config.study import DownstreamOptions

__all__ = [
    "AUGMENTATIONS",
    "EXTRACTORS",
    "DataOptions",
    "DownstreamOptions",
    "EncoderOptions",
    "FeatureChoice",
    "FeatureOptions",
    "FilterChoice",
    "FilteringOptions",
    "GenerationOptions",
    "MethodOptions",
    "ModalityOptions",
    "OptimizerOptions",
    "Options",
    "OutputOptions",
    "PlanOptions",
    "Recipe",
    "StudyOptions",
    "TrainingOptions",
    "build_recipe",
    "changed_keys",
    "dump_recipe",
    "load_recipe",
    "option",
    "recipe_names",
    "recipe_text",
]
