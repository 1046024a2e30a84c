"""Options that several commands share, and the option objects of the public functions made from flags."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from rebalance.config.requests import FORMATS, FeatureChoice, FilterChoice, OutputOptions, StudyOptions
from rebalance.config.sections import SQUARES

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Choice = TypeVar("Choice", OutputOptions, FilterChoice, FeatureChoice, StudyOptions)

PATH: click.Path = click.Path(path_type=Path)

_BALANCE_HELP = (
    "What to raise, and to what: auto, minority, 'not minority', 'not majority', all; a number in (0, 1]; or final "
    "counts as inline JSON or in a .json/.yaml file."
)
_FEATURES_HELP = "efficientnet, inception, encoder (the run's own), or module:attribute of your own."
_MULTIPLE_HELP = "At most this many times the real images of a class."


def combined(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds these options in their order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(decorators), function)

    return decorate


# Inputs and outputs


def argument(name: str) -> Decorator:
    """Declare a path that is given by its position."""
    return click.argument(name, type=PATH)


data_argument = argument("data")
real_option = click.option("--real", required=True, type=PATH, help="The real data set.")
out_option = click.option("--out", required=True, type=PATH, help="Folder of the shards.")


def overwrite_option(holder: str) -> Decorator:
    """Declare `--overwrite` for a command whose output is called `holder`."""
    return click.option("--overwrite", is_flag=True, help=f"Delete what {holder} holds and start again.")


# Device, processes, answer

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON summary on stdout.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
workers_option = click.option(
    "--workers",
    type=int,
    default=0,
    help="Processes; 0: one a CPU where there is work for it, or one on a GPU.  [default: 0]",
)
answer_options = combined(json_option, quiet_option)
run_options = combined(device_option, answer_options)


# Recipe and amounts


def recipe_options(recipe: Decorator, example: str = "Change a recipe key; repeatable.") -> Decorator:
    """Declare the recipe, and `--set` with this help."""
    return combined(recipe, click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=example))


max_multiple_option = click.option("--max-multiple", type=float, help=_MULTIPLE_HELP)
plan_options = combined(
    click.option("--balance", default="auto", show_default=True, help=_BALANCE_HELP),
    max_multiple_option,
    recipe_options(
        click.option("--recipe", default="gpu-128", show_default=True, help="Name of a recipe or a YAML file.")
    ),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Replace the recipe's seed."),
)
amount_options = combined(
    click.option("--balance", help=f"Other amounts than the run's plan. {_BALANCE_HELP} tuned: as downstream chose."),
    max_multiple_option,
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all draws.")


# The output


def _shard_range(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, colon, last = value.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise click.BadParameter(f"{value!r} is not A:B with two whole numbers")
    return int(first), int(last)


def shard_size_option(text: str) -> Decorator:
    """Declare `--shard-size` with this help."""
    return click.option("--shard-size", type=int, default=OutputOptions().shard_size, show_default=True, help=text)


def square_option(images: str) -> Decorator:
    """Declare `--square`; the help says which images are meant."""
    return click.option("--square", type=click.Choice(SQUARES), help=f"How {images} become square.")


encoding_options = combined(
    click.option(
        "--format", "file_format", type=click.Choice(FORMATS), default="jpg", show_default=True, help="Image format."
    ),
    click.option("--quality", type=int, default=95, show_default=True, help="Of jpg and webp, 1 to 100."),
)
selection_options = combined(
    click.option("--shards", metavar="A:B", callback=_shard_range, help="Only shards A to B - 1."),
    click.option("--include-real", is_flag=True, help="Add the real train images of all classes."),
)


# The filter and its features

limit_options = combined(
    click.option("--keep", type=float, help="Share kept by influence on FD.  [default: calibrated]"),
    click.option("--min-confidence", type=float, help="Least class probability.  [default: calibrated]"),
    click.option("--max-similarity", type=float, help="Largest cosine to a train image.  [default: calibrated]"),
    click.option("--max-fid", help="Limit on each class's Fréchet distance, such as 12.5, or 3x its floor."),
    click.option("--max-kid", help="Limit on each class's KID, such as 0.5, or 3x its floor."),
)
weights_option = click.option("--weights", type=PATH, help="Inception weights.")


def features_option(default: str, purpose: str = "") -> Decorator:
    """Declare `--features`; the help says what they are for and whose they are by default."""
    return click.option("--features", help=f"{purpose}{_FEATURES_HELP}  [default: {default}]")


encoder_options = combined(
    click.option("--run", type=PATH, help="Run whose encoder is meant by --features encoder."),
    click.option(
        "--input-px", type=int, help="Side of the images that efficientnet sees.  [default: the run's, else 224]"
    ),
    weights_option,
)


# The study


def _listed(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


arm_options = combined(
    click.option("--seeds", type=int, default=StudyOptions().seeds, show_default=True, help="Trainings of every arm."),
    click.option(
        "--arms",
        callback=_listed,
        metavar="ARM,...",
        help="Such as plain, oversampling+augment, best+filtered+x5+share=0.3.  "
        "[default: all remedies and their mixtures]",
    ),
    click.option(
        "--multiples",
        callback=_listed,
        default=",".join(map(str, StudyOptions().multiples)),
        show_default=True,
        metavar="M,...",
        help="Synthetic images of a class, times its real ones.",
    ),
)


# Option objects


def _filled(kind: type[Choice], values: Mapping[str, Any], **others: Any) -> Choice:
    """Return option objects with the fields that have a flag of their name."""
    flags = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    return kind(**{**flags, **others})


def output_options(values: Mapping[str, Any]) -> OutputOptions:
    """Return the settings of an output that a command's flags give."""
    return _filled(OutputOptions, values)


def feature_choice(values: Mapping[str, Any]) -> FeatureChoice:
    """Return the features that a command's flags name."""
    return _filled(FeatureChoice, values, name=values["features"])


def filter_choice(values: Mapping[str, Any]) -> FilterChoice:
    """Return the limits and features of the filter that a command's flags give."""
    return _filled(FilterChoice, values, features=feature_choice(values))


def study_options(values: Mapping[str, Any]) -> StudyOptions:
    """Return the arms of a study that a command's flags give."""
    return _filled(StudyOptions, values)
