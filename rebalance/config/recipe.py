"""The recipe: every choice of a run in one frozen tree, loaded from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from rebalance import storage
from rebalance.config.method import MethodOptions
from rebalance.config.options import Options, build, nearest, option, required, set_dotted, to_mapping
from rebalance.config.sections import (
    DataOptions,
    FeatureOptions,
    FilteringOptions,
    GenerationOptions,
    ModalityOptions,
    PlanOptions,
    TrainingOptions,
)
from rebalance.config.study import DownstreamOptions
from rebalance.errors import InputError


@dataclass(frozen=True)
class Recipe(Options):
    """All choices of a run; in YAML the section of the method's options has the method's name."""

    method: str = required("the method that makes images")
    options: MethodOptions = required("options of the method")
    seed: int = option(0, "seed of everything", at_least=0, at_most=2**31 - 1)
    data: DataOptions = option(DataOptions, "images")
    features: FeatureOptions = option(FeatureOptions, "features")
    plan: PlanOptions = option(PlanOptions, "plan")
    modalities: ModalityOptions = option(ModalityOptions, "modalities")
    training: TrainingOptions = option(TrainingOptions, "training")
    generation: GenerationOptions = option(GenerationOptions, "generation")
    filtering: FilteringOptions = option(FilteringOptions, "filtering")
    downstream: DownstreamOptions = option(DownstreamOptions, "classifier of the downstream study")

    def __post_init__(self) -> None:
        """Check the rules that join several sections."""
        super().__post_init__()
        if self.modalities.by == "column" and not self.data.sublabel_column:
            raise InputError("modalities.by: column needs data.sublabel_column", remedy="Name the manifest's column")
        self.options.check(self)
        self._check_stages()

    def _check_stages(self) -> None:
        """Check that batches can be cut as the method asks, and that stages have names of their own."""
        multiple = self.options.batch_parts * self.options.batch_multiple
        stages = self.options.stages(self)
        for stage in stages:
            if stage.training.batch % multiple:
                raise InputError(
                    f"training.batch with {self.method}", value=stage.training.batch, allowed=f"multiples of {multiple}"
                )
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise InputError("two stages of the method have one name", value=", ".join(names))

    def to_mapping(self) -> dict[str, Any]:
        """Return the recipe as nested plain values, as `build_recipe` takes it."""
        values = to_mapping(self)
        del values["options"]
        return {**values, self.method: to_mapping(self.options)}


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested mappings, as parsed from YAML.

    A recipe without the key `method` takes the method whose section it holds, if it holds one such section.

    Raises:
        InputError: unknown method or key (the nearest match is named), wrong type, or value out of range.
    """
    from rebalance.methods.registry import method_names, method_options  # methods stand above this package

    if not isinstance(values, Mapping):
        raise InputError("a recipe must be a mapping", value=values)
    sections = [name for name in method_names() if name in values]
    name = values.get("method", sections[0] if len(sections) == 1 else None)
    kind = method_options(name)
    _check_keys(values, str(name))
    section = values.get(str(name))
    options = build(kind, {} if section is None else section, str(name))
    rest = {key: value for key, value in values.items() if key != name}
    return build(Recipe, {**rest, "method": name, "options": options})


def _check_keys(values: Mapping[str, Any], method: str) -> None:
    """Refuse a key that a recipe of this method does not have, such as the section of another method."""
    keys = {field.name for field in fields(Recipe)} - {"options"} | {method}
    for key in values:
        if key == "options":
            raise InputError("unknown recipe key 'options'", remedy=f"The section of the method is {method!r}")
        if key not in keys:
            raise InputError(f"unknown recipe key {str(key)!r}", remedy=nearest(str(key), keys))


def recipe_directory() -> Path:
    """Return the folder of the shipped recipes: package data when installed, `recipes/` in a clone."""
    installed = Path(__file__).parent.parent / "recipes"
    return installed if storage.is_folder(installed) else Path(__file__).parent.parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return [path.stem for path in storage.list_files(recipe_directory(), "*.yaml")]


def recipe_text(recipe: str | Path) -> str:
    """Return the YAML of a shipped recipe (by name) or of a file (by path).

    Raises:
        InputError: neither exists; the nearest name is given.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        if str(recipe) not in recipe_names():
            raise InputError(f"unknown recipe {str(recipe)!r}", remedy=nearest(str(recipe), recipe_names()))
        path = recipe_directory() / f"{recipe}.yaml"
    try:
        return storage.read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error


def load_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Load a recipe, apply `key=value` overrides, and check it.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, or a recipe that has been loaded.
        overrides: `dotted.key=value` strings; the value is read as YAML.
        seed: replaces the recipe's seed if given.

    Raises:
        InputError: unknown recipe or key (nearest match named), wrong type, value out of range.
    """
    parsed = recipe.to_mapping() if isinstance(recipe, Recipe) else _parse(recipe_text(recipe), f"recipe {recipe}")
    values = {} if parsed is None else parsed  # an empty file
    if not isinstance(values, dict):
        raise InputError(f"recipe {recipe} must be a mapping", value=values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError("`overrides` need key=value", value=override, allowed="for example training.steps=2000")
        set_dotted(values, key.strip(), _parse(text, f"`overrides`: {key}"))
    if seed is not None:
        values["seed"] = seed
    return build_recipe(values)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every value, so that loading it gives the same recipe."""
    return str(yaml.safe_dump(recipe.to_mapping(), sort_keys=False))
