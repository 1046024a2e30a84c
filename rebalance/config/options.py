"""The machinery of options: documented frozen dataclasses that check their ranges and load from plain mappings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rebalance.errors import InputError

O = TypeVar("O", bound="Options")  # noqa: E741


def option(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Declare one field of an `Options` class.

    Args:
        default: the value when a recipe does not name the key; a list becomes a tuple.
        doc: what the key means, with its unit.
        at_least: smallest value allowed.
        at_most: largest value allowed.
        above: bound that the value must exceed.
        choices: the values allowed; for a tuple, the values its elements may have.
    """
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, "above": above, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(doc: str) -> Any:
    """Declare a field of an `Options` class that has no default."""
    return dataclasses.field(metadata={"doc": doc, **dict.fromkeys(("at_least", "at_most", "above", "choices"))})


@dataclass(frozen=True)
class Options:
    """Base of every section of a recipe; construction checks every field against its declaration."""

    def __post_init__(self) -> None:
        """Check every range and choice.

        Raises:
            InputError: a value lies outside what its field allows.
        """
        for field in dataclasses.fields(self):
            check(f"{type(self).__name__}.{field.name}", field.metadata, getattr(self, field.name))

    @classmethod
    def from_section(cls: type[O], values: Mapping[str, Any], where: str) -> O:
        """Build a section from plain values; classes that others stand in for choose here."""
        return build(cls, values, where)

    @property
    def section_head(self) -> dict[str, Any]:
        """Return the keys that say which class a section is built of; none by default."""
        return {}


def check(name: str, rule: Mapping[str, Any], value: Any) -> None:
    """Check a value, or each element of a tuple, against what `option` declared.

    Raises:
        InputError: it lies outside; the message calls it `name`.
    """
    if isinstance(value, tuple):
        for element in value:
            check(name, rule, element)
        return
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite", value=value)
    if rule["choices"] is not None and value not in rule["choices"]:
        raise InputError(f"{name} is unknown", value=value, allowed=", ".join(map(repr, rule["choices"])))
    if rule["at_least"] is not None and value < rule["at_least"]:
        raise InputError(f"{name} is too small", value=value, allowed=f"{rule['at_least']} or more")
    if rule["at_most"] is not None and value > rule["at_most"]:
        raise InputError(f"{name} is too large", value=value, allowed=f"{rule['at_most']} or less")
    if rule["above"] is not None and value <= rule["above"]:
        raise InputError(f"{name} is too small", value=value, allowed=f"more than {rule['above']}")


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Return a sentence that names the nearest match of `name` among `names`, or lists them all."""
    names = sorted(names)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {matches[0]!r}?" if matches else f"Known: {', '.join(names)}"


def build(kind: type[O], values: Mapping[str, Any], where: str = "") -> O:
    """Build an `Options` class from nested mappings.

    Args:
        kind: the class.
        values: keys and values as parsed from YAML.
        where: dotted name of this section, for messages.

    Raises:
        InputError: unknown key (the nearest match is named), wrong type, or value out of range.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"recipe section {where or 'root'} must be a mapping", value=values)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise InputError(f"unknown recipe key {dotted!r}", remedy=nearest(str(key), fields))
        arguments[key] = _convert(hints[key], value, dotted)
        check(dotted, fields[key].metadata, arguments[key])
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Options):
        return value if isinstance(value, hint) else hint.from_section(value, where)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"recipe key {where} must be a list", value=value)
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, item, where) for item in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as a string.
        try:
            return float(value)
        except ValueError as error:
            raise InputError(f"recipe key {where} must be a number", value=value) from error
    if type(value) is hint:
        return value
    raise InputError(
        f"recipe key {where} has the wrong type", value=value, allowed=getattr(hint, "__name__", str(hint))
    )


def to_mapping(options: Options) -> dict[str, Any]:
    """Return the options as nested plain mappings and lists, every value included."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Options):
            values[field.name] = {**value.section_head, **to_mapping(value)}
        else:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def without_defaults(options: Options) -> dict[str, Any]:
    """Return as nested plain values what differs from the defaults.

    Fingerprints are taken of it, so that a key that a later release adds changes none.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Options):
            inner = {**value.section_head, **without_defaults(value)}
            if inner:
                values[field.name] = inner
        elif field.default is dataclasses.MISSING or value != field.default:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def flatten(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else key
        flat.update(flatten(value, dotted) if isinstance(value, Mapping) else {dotted: value})
    return flat


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old -> new` for every dotted key in which two nested mappings differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `values[a][b][c]` for the dotted name `a.b.c`, making the mappings on the way."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"`overrides`: in {dotted}, {section!r} is a value, not a section")
    values[last] = value
