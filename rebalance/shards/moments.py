"""The moments of each shard's images, from which the distance of all finished shards is told without their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from threadpoolctl import threadpool_limits

from rebalance import files
from rebalance.filtering import Yardstick
from rebalance.frechet import FrechetResult, StreamingMoments


def moments_of(
    images: Iterable[tuple[str, np.ndarray]], yardsticks: Mapping[str, Yardstick], threads: int
) -> dict[str, StreamingMoments]:
    """Return the moments of a shard's images by class, of classes that have a yardstick.

    Args:
        images: class and features (D,) of each image, in order.
        yardsticks: what each class is held against.
        threads: CPU threads, because results depend on them.
    """
    features: dict[str, list[np.ndarray]] = {}
    for name, of_image in images:
        features.setdefault(name, []).append(of_image)
    with threadpool_limits(threads):
        return {
            name: yardsticks[name].measure(np.stack(features[name])) for name in sorted(features) if name in yardsticks
        }


def write_moments(path: Path, moments: Mapping[str, StreamingMoments]) -> dict[str, Any]:
    """Write the moments of a shard, if there are any; return their classes and hash for its marker."""
    if not moments:
        return {}
    names = sorted(moments)
    # By number, because a class's name may hold anything.
    arrays = {f"{number}/{key}": a for number, name in enumerate(names) for key, a in moments[name].to_arrays().items()}
    data = safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    files.write_bytes(path, data)
    return {"classes": names, "sha256": files.sha256_bytes(data)}


def read_moments(path: Path, marked: Mapping[str, Any]) -> dict[str, StreamingMoments]:
    """Read the moments of a shard.

    Args:
        path: the file.
        marked: what `write_moments` returned.

    Raises:
        DamagedError: missing or damaged.
    """
    if not marked:
        return {}
    arrays = safetensors.numpy.load(files.read_hashed(path, marked["sha256"]))
    keys = StreamingMoments(1).to_arrays()
    return {
        name: StreamingMoments.from_arrays({key: arrays[f"{number}/{key}"] for key in keys})
        for number, name in enumerate(marked["classes"])
    }


def finished_distances(
    shards: Iterable[Mapping[str, StreamingMoments]], yardsticks: Mapping[str, Yardstick], draws: int, seed: int
) -> dict[str, FrechetResult]:
    """Return the distance of all shards' images to the real train images, of each class with two images or more.

    Args:
        shards: the moments of each shard, in order.
        yardsticks: what each class is held against.
        draws: pairs of Gaussian sets behind the floor.
        seed: seed of these.
    """
    totals = {name: StreamingMoments(len(yardstick.real.mean)) for name, yardstick in yardsticks.items()}
    for of_shard in shards:
        for name, moments in of_shard.items():
            totals[name].merge(moments)
    with threadpool_limits(1):  # the manifest is to have the same bytes on any number of cores
        distances = {name: yardstick.compare(totals[name], draws, seed) for name, yardstick in yardsticks.items()}
    return {name: distance for name, distance in distances.items() if distance is not None}
