"""How many synthetic images each class gets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rebalance import storage
from rebalance.errors import InputError

STRATEGIES = ("auto", "minority", "not minority", "not majority", "all")
"""Names that `balance` takes, with imbalanced-learn's meanings for over-sampling."""


def parse_balance(balance: str | float | Mapping[str, int]) -> str | float | dict[str, int]:
    """Read a requested balance: a strategy, a float, or a mapping as inline JSON or in a file.

    Raises:
        InputError: none of these.
    """
    if isinstance(balance, Mapping):
        return _final_counts(balance)
    if isinstance(balance, (int, float)) or balance in STRATEGIES:
        return balance
    if balance.lstrip().startswith("{"):
        try:
            return _final_counts(json.loads(balance))
        except ValueError as error:
            raise InputError("`balance` is not valid JSON", value=balance, remedy=str(error)) from error
    try:
        return float(balance)
    except ValueError:
        return _balance_file(Path(balance))


def _balance_file(path: Path) -> dict[str, int]:
    allowed = f"{', '.join(STRATEGIES)}, a number in (0, 1], inline JSON or a .json/.yaml file of class: final count"
    if path.suffix not in (".json", ".yaml", ".yml") or not storage.is_file(path):
        raise InputError("`balance` is unknown", value=str(path), allowed=allowed)
    try:
        text = storage.read_bytes(path).decode("utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read `balance` {path}: {error}") from error
    return _final_counts(values)


def _final_counts(values: Any) -> dict[str, int]:
    if not isinstance(values, Mapping) or not values:
        raise InputError("`balance` mapping must name at least one class", value=values, allowed="class: final count")
    for name, count in values.items():
        if type(count) is not int or count < 0:
            raise InputError(f"`balance`: final count of {name!r}", value=count, allowed="a whole number")
    return {str(name): count for name, count in values.items()}


def resolve_balance(
    counts: Mapping[str, int], balance: str | float | Mapping[str, int], max_multiple: float | None = None
) -> dict[str, int]:
    """Resolve a request into synthetic images per class, in label order, classes with none left out.

    Args:
        counts: usable train images of every class, in label order.
        balance: as `parse_balance` takes it.
        max_multiple: cap on synthetic images of a class, times its real ones.

    Raises:
        InputError: fewer than two classes, unknown class, final count below the present one, ratio already met, a
            target without any image, or nothing to do.
    """
    request = parse_balance(balance)
    filled = {name: count for name, count in counts.items() if count}
    if len(filled) < 2:
        raise InputError(
            "rebalancing needs at least two classes with usable train images", value=dict(counts), allowed="two or more"
        )
    finals = _wanted(counts, request)
    empty = [name for name, final in finals.items() if final > counts[name] == 0]
    if empty:
        raise InputError(
            f"no usable train image in class {', '.join(map(repr, empty))}",
            remedy="Add images, remove the folder, or name other targets with `balance`",
        )
    wanted = {name: final - counts[name] for name, final in finals.items() if final > counts[name]}
    if not wanted:
        raise InputError("nothing to do: every class has the images that `balance` asks for", value=balance)
    return wanted if max_multiple is None else cap(wanted, counts, max_multiple)


def cap(wanted: Mapping[str, int], real: Mapping[str, int], max_multiple: float) -> dict[str, int]:
    """Cap synthetic images of each class at a multiple of its real ones, rounded down; classes left with none go.

    Raises:
        InputError: the multiple is not above 0, or leaves nothing.
    """
    if not 0 < max_multiple < math.inf:
        raise InputError("`max_multiple`", value=max_multiple, allowed="a number above 0")
    # The small addition undoes binary rounding, so that 0.29 of 100 is 29.
    capped = {name: min(n, math.floor(max_multiple * real[name] + 1e-9)) for name, n in wanted.items()}
    capped = {name: n for name, n in capped.items() if n}
    if not capped:
        raise InputError("nothing to do: `max_multiple` leaves no image to make", value=max_multiple)
    return capped


def _wanted(counts: Mapping[str, int], request: str | float | dict[str, int]) -> dict[str, int]:
    largest = max(counts.values())
    smallest = min(count for count in counts.values() if count)
    if isinstance(request, dict):
        for name, final in request.items():
            if name not in counts:
                raise InputError(f"`balance` names an unknown class {name!r}", allowed=", ".join(map(repr, counts)))
            if final < counts[name]:
                raise InputError(
                    f"`balance`: final count of {name!r} is below its {counts[name]} real images", value=final
                )
        return {name: request[name] for name in counts if name in request}
    if isinstance(request, str):
        rules: dict[str, Callable[[int], bool]] = {
            "minority": lambda count: count == smallest,
            "not minority": lambda count: count != smallest,
            "not majority": lambda count: count != largest,
            "auto": lambda count: count != largest,
            "all": lambda count: True,
        }
        return {name: largest for name, count in counts.items() if rules[request](count)}
    if not 0 < request <= 1:
        raise InputError("`balance` as a number", value=request, allowed="above 0, at most 1")
    final = math.ceil(request * largest - 1e-9)
    if smallest >= final:
        raise InputError(
            f"`balance`: the ratio is already met, the smallest class has {smallest / largest:.3f} of the largest",
            value=request,
            allowed="a larger ratio, at most 1",
        )
    return {name: final for name, count in counts.items() if count < final}
