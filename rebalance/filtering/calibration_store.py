"""Calibrations on disk: a sealed JSON file, and beside it the arrays of filters and real moments with their hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rebalance import storage
from rebalance.errors import DamagedError
from rebalance.filtering.checks import REGISTRY
from rebalance.filtering.checks.base import StoredCheck
from rebalance.filtering.class_gate import ClassCalibration, filters_of, real_moments_of
from rebalance.filtering.image_filter import ImageFilter
from rebalance.filtering.real_moments import RealMoments
from rebalance.filtering.space import Space
from rebalance.measures import frechet
from rebalance.measures.class_probe import ClassProbe

logger = logging.getLogger(__name__)

# One more whenever the same request is measured in another way, or stored in another.
_VERSION = 6

# Members of the JSON that hold the hash of a file beside it, and how that ends; version 0.1 wrote the second one.
_BESIDE = {"arrays": ".safetensors", "yardsticks": ".yardsticks.safetensors"}


def write_calibrations(
    path: Path, key: str, features: str, seed: int, calibrations: Mapping[str, ClassCalibration]
) -> dict[str, ClassCalibration]:
    """Write the calibrations of classes; the JSON file, which holds the hash of the arrays, comes last.

    Returns them as they are read from there: how arrays lie in memory decides how sums of products are rounded.

    Args:
        path: of the JSON file.
        key: hash of everything that was asked.
        features: name of the extractor.
        seed: seed of all draws.
        calibrations: by class.
    """
    filters = filters_of(list(calibrations.values()))
    real_moments = real_moments_of(list(calibrations.values()))
    tensors = _filter_tensors(filters) | _moment_tensors(real_moments)
    arrays: dict[str, Any] = {}
    if tensors:
        data = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        storage.write_bytes(_arrays_path(path), data)
        arrays = {
            "sha256": storage.sha256_bytes(data),
            "filters": {name: _filter_values(image_filter) for name, image_filter in filters.items()},
            "real_images": {name: of_class.real.n for name, of_class in real_moments.items()},
        }
    values = {
        "version": _VERSION,
        "key": key,
        "features": features,
        "seed": seed,
        "classes": {name: calibration.to_json() for name, calibration in calibrations.items()},
        "arrays": arrays,
    }
    storage.write_sealed_json(path, values)
    return _from(path, values)


def read_calibrations(path: Path, key: str) -> dict[str, ClassCalibration] | None:
    """Return an earlier calibration; None when there is none of this key, or one to measure again, which is logged."""
    if not storage.is_file(path):
        return None
    try:
        values = storage.read_sealed_json(path)
        if values.get("version") != _VERSION:
            logger.warning("%s was written by another version of rebalance. It is measured again.", path)
            return None
        return _from(path, values) if values["key"] == key else None
    except DamagedError as error:
        logger.warning("%s It is measured again.", error)
        return None


def calibration_files(path: Path) -> list[Path]:
    """Return the files of a calibration that are there."""
    return [file for file in (path, _arrays_path(path)) if storage.is_file(file)]


def problems(folder: Path) -> list[storage.Problem]:
    """Return what is missing or damaged of the calibrations in a folder, of earlier versions too."""
    found = []
    for path in storage.list_files(folder, "*.json"):
        try:
            values = storage.read_sealed_json(path)
            for member, ending in _BESIDE.items():
                if values.get(member):
                    storage.read_hashed(path.with_suffix(ending), values[member]["sha256"])
        except DamagedError as error:
            found.append(storage.Problem(str(path), str(error)))
    return found


def _arrays_path(path: Path) -> Path:
    return path.with_suffix(_BESIDE["arrays"])


def _filter_tensors(filters: Mapping[str, ImageFilter]) -> dict[str, np.ndarray]:
    """Return the arrays of filters, which share a space."""
    if not filters:
        return {}
    space = next(iter(filters.values())).space
    tensors = {"space/whitening": space.whitening} | _projection_tensors(space.projection)
    if space.probe:
        tensors |= {"probe/weights": space.probe.weights, "probe/offsets": space.probe.offsets}
    # By number, because a class's name may hold anything; sorted, because JSON keeps no other order.
    for number, name in enumerate(sorted(filters)):
        for check_name, check in filters[name].checks.items():
            tensors |= {f"filters/{number}/{check_name}/{array}": of for array, of in check.arrays().items()}
    return tensors


def _moment_tensors(real_moments: Mapping[str, RealMoments]) -> dict[str, np.ndarray]:
    """Return the arrays of real moments, which share a projection, that of the filters."""
    if not real_moments:
        return {}
    tensors = _projection_tensors(next(iter(real_moments.values())).projection)
    for number, name in enumerate(sorted(real_moments)):
        real = real_moments[name].real
        tensors |= {f"real/{number}/mean": real.mean, f"real/{number}/covariance": real.covariance}
    return tensors


def _projection_tensors(projection: frechet.Projection) -> dict[str, np.ndarray]:
    return {"space/centre": projection.centre, "space/axes": projection.axes}


def _filter_values(image_filter: ImageFilter) -> dict[str, Any]:
    """Return what the JSON holds of a filter."""
    probe = image_filter.space.probe
    return {
        "checks": {name: check.numbers() for name, check in image_filter.checks.items()},
        "notes": list(image_filter.notes),
        "probe": list(probe.names) if probe else [],
    }


def _from(path: Path, values: Mapping[str, Any]) -> dict[str, ClassCalibration]:
    """Build the calibrations from the JSON's values and the arrays beside.

    Raises:
        DamagedError: the arrays are missing or damaged, or those of another version.
    """
    filters: dict[str, ImageFilter] = {}
    real_moments: dict[str, RealMoments] = {}
    arrays = values["arrays"]
    if arrays:
        file = _arrays_path(path)
        tensors = safetensors.numpy.load(storage.read_hashed(file, arrays["sha256"]))
        try:
            projection = frechet.Projection(tensors["space/centre"], tensors["space/axes"])
            filters = _filters(tensors, projection, arrays["filters"])
            real_moments = _real_moments(tensors, projection, arrays["real_images"])
        except KeyError as error:
            raise DamagedError(f"{file} lacks {error}: another version of rebalance has written it.") from error
    return {
        name: ClassCalibration.from_json(of_class, filters.get(name), real_moments.get(name))
        for name, of_class in values["classes"].items()
    }


def _filters(
    tensors: Mapping[str, np.ndarray], projection: frechet.Projection, values: Mapping[str, Any]
) -> dict[str, ImageFilter]:
    if not values:
        return {}
    names, probe = next(iter(values.values()))["probe"], None
    if names:
        probe = ClassProbe(tuple(names), tensors["probe/weights"], tensors["probe/offsets"])
    space, filters = Space(projection, tensors["space/whitening"], probe), {}
    for number, (class_name, of_class) in enumerate(sorted(values.items())):
        unknown = of_class["checks"].keys() - REGISTRY.keys()
        if unknown:
            raise KeyError(f"check {min(unknown)}")
        checks = {}
        for name, check in REGISTRY.items():
            if name in of_class["checks"]:
                prefix = f"filters/{number}/{name}/"
                own = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
                checks[name] = check.restored(StoredCheck(class_name, space, own, of_class["checks"][name]))
        filters[class_name] = ImageFilter(class_name, space, checks, tuple(of_class["notes"]))
    return filters


def _real_moments(
    tensors: Mapping[str, np.ndarray], projection: frechet.Projection, numbers: Mapping[str, int]
) -> dict[str, RealMoments]:
    return {
        name: RealMoments(
            projection, frechet.Moments(tensors[f"real/{number}/mean"], tensors[f"real/{number}/covariance"], n)
        )
        for number, (name, n) in enumerate(sorted(numbers.items()))
    }
