"""Image filters as safetensors and plain values, so that every process and a later day have the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rebalance import files, frechet
from rebalance.class_probe import ClassProbe
from rebalance.errors import DamagedError
from rebalance.filtering.bank import Bank
from rebalance.filtering.image_filter import ImageFilter, Space
from rebalance.influence import Influence

_INFLUENCE = fields(Influence)
_ARRAYS = ("mean", "precision", "pool")
_BANK = fields(Bank)
_NUMBERS = ("checks", "max_distance", "texture", "min_confidence", "max_similarity", "max_influence", "notes")


def save_filters(path: Path, filters: Mapping[str, ImageFilter]) -> dict[str, Any]:
    """Write the arrays of filters that share a space; return the rest as plain values, with the arrays' hash."""
    space = next(iter(filters.values())).space
    tensors = {
        "space/centre": space.projection.centre,
        "space/axes": space.projection.axes,
        "space/whitening": space.whitening,
    }
    if space.probe:
        tensors |= {"probe/weights": space.probe.weights, "probe/offsets": space.probe.offsets}
    # By number, because a class's name may hold anything; sorted, because JSON keeps no other order.
    for number, name in enumerate(sorted(filters)):
        tensors |= {f"{number}/{array}": values for array, values in _own_arrays(filters[name]).items()}
    files.write_bytes(path, safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
    numbers = {name: {key: getattr(found, key) for key in _NUMBERS} for name, found in filters.items()}
    return {
        "sha256": files.sha256_file(path),
        "probe": list(space.probe.names) if space.probe else [],
        "filters": {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in of_class.items()}
            for name, of_class in numbers.items()
        },
    }


def _own_arrays(found: ImageFilter) -> dict[str, np.ndarray]:
    influence = {f"influence/{f.name}": np.asarray(getattr(found.influence, f.name)) for f in _INFLUENCE}
    bank = {f"bank/{f.name}": getattr(found.bank, f.name) for f in _BANK}
    return {name: getattr(found, name) for name in _ARRAYS} | bank | influence


def digest(found: ImageFilter) -> str:
    """Return the SHA-256 of everything that decides a verdict."""
    space, probe = found.space, found.space.probe
    arrays = [space.projection.centre, space.projection.axes, space.whitening, *_own_arrays(found).values()]
    arrays += [probe.weights, probe.offsets] if probe else []
    values = [{key: getattr(found, key) for key in _NUMBERS}, probe.names if probe else ()]
    texts = [files.canonical_json(values), *(files.sha256_bytes(np.ascontiguousarray(a).tobytes()) for a in arrays)]
    return files.sha256_bytes("/".join(texts).encode())


def load_filters(path: Path, values: Mapping[str, Any]) -> dict[str, ImageFilter]:
    """Read what `save_filters` wrote and returned.

    Raises:
        DamagedError: the arrays are missing or damaged, or those of another version.
    """
    try:
        return _built(safetensors.numpy.load(files.read_hashed(path, values["sha256"])), values)
    except KeyError as error:
        raise DamagedError(f"{path} lacks {error}: another version of rebalance has written it") from error


def _built(tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> dict[str, ImageFilter]:
    probe = None
    if values["probe"]:
        probe = ClassProbe(tuple(values["probe"]), tensors["probe/weights"], tensors["probe/offsets"])
    projection = frechet.Projection(tensors["space/centre"], tensors["space/axes"])
    space, filters = Space(projection, tensors["space/whitening"], probe), {}
    for number, (name, numbers) in enumerate(sorted(values["filters"].items())):
        parts = {f.name: tensors[f"{number}/influence/{f.name}"] for f in _INFLUENCE}
        parts["constant"] = float(parts["constant"].item())
        filters[name] = ImageFilter(
            class_name=name,
            space=space,
            bank=Bank(**{f.name: tensors[f"{number}/bank/{f.name}"] for f in _BANK}),
            influence=Influence(**parts),
            **{array: tensors[f"{number}/{array}"] for array in _ARRAYS},
            **{key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()},
        )
    return filters
