"""Calibrations on disk: a sealed JSON file, and beside it the arrays of filters and yardsticks with their hashes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.errors import DamagedError
from rebalance.filtering.class_gate import ClassCalibration, filters_of, yardsticks_of
from rebalance.filtering.store import load_filters, save_filters
from rebalance.filtering.yardstick import load_yardsticks, save_yardsticks

logger = logging.getLogger(__name__)

# One more whenever the same request is measured in another way.
_VERSION = 5


def write_calibrations(
    path: Path, key: str, features: str, seed: int, found: Mapping[str, ClassCalibration]
) -> dict[str, ClassCalibration]:
    """Write the calibrations of classes; the JSON file, which holds the hashes of the others, comes last.

    Returns them as they are read from there: how arrays lie in memory decides how sums of products are rounded.

    Args:
        path: of the JSON file.
        key: hash of everything that was asked.
        features: name of the extractor.
        seed: seed of all draws.
        found: calibrations by class.
    """
    filters, yardsticks = filters_of(list(found.values())), yardsticks_of(list(found.values()))
    values = {
        "version": _VERSION,
        "key": key,
        "features": features,
        "seed": seed,
        "classes": {name: calibration.to_json() for name, calibration in found.items()},
        "arrays": save_filters(_filters(path), filters) if filters else {},
        "yardsticks": save_yardsticks(_yardsticks(path), yardsticks) if yardsticks else {},
    }
    files.write_sealed_json(path, values)
    return _from(path, values)


def read_calibrations(path: Path, key: str) -> dict[str, ClassCalibration] | None:
    """Return an earlier calibration, None when there is none of this key; of a damaged one, that is said."""
    if not path.is_file():
        return None
    try:
        values = files.read_sealed_json(path)
        if values["key"] != key or values.get("version") != _VERSION:  # of another request, or measured otherwise
            return None
        return _from(path, values)
    except DamagedError as error:
        logger.warning("%s It is measured again.", error)
        return None


def _from(path: Path, values: Mapping[str, Any]) -> dict[str, ClassCalibration]:
    arrays, real = values["arrays"], values["yardsticks"]
    filters = load_filters(_filters(path), arrays) if arrays else {}
    yardsticks = load_yardsticks(_yardsticks(path), real) if real else {}
    return {
        name: ClassCalibration.from_json(of_class, filters.get(name), yardsticks.get(name))
        for name, of_class in values["classes"].items()
    }


def names_of(path: Path) -> list[Path]:
    """Return the files of a calibration that are there."""
    return [name for name in (path, _filters(path), _yardsticks(path)) if name.is_file()]


def _filters(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _yardsticks(path: Path) -> Path:
    return path.with_suffix(".yardsticks.safetensors")
