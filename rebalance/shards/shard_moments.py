"""The moments of each shard's images, from which the distance of all finished shards is told without their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from threadpoolctl import threadpool_limits

from rebalance import storage
from rebalance.filtering import RealMoments
from rebalance.measures.frechet import FrechetResult, StreamingMoments
from rebalance.shards.records import MomentsFile


def moments_of(
    images: Iterable[tuple[str, np.ndarray]], real_moments: Mapping[str, RealMoments], threads: int
) -> dict[str, StreamingMoments]:
    """Return the moments of a shard's images by class, of classes whose real moments are known.

    Args:
        images: class and features (D,) of each image, in order.
        real_moments: of each class that is compared.
        threads: CPU threads, because results depend on them.
    """
    features: dict[str, list[np.ndarray]] = {}
    for name, of_image in images:
        features.setdefault(name, []).append(of_image)
    with threadpool_limits(threads):
        names = sorted(features.keys() & real_moments.keys())
        return {name: real_moments[name].measure(np.stack(features[name])) for name in names}


def write_moments(path: Path, moments: Mapping[str, StreamingMoments]) -> MomentsFile | None:
    """Write the moments of a shard, if there are any; return what its marker says of the file."""
    if not moments:
        return None
    names = sorted(moments)
    # By number, because a class's name may hold anything.
    arrays = {f"{number}/{key}": a for number, name in enumerate(names) for key, a in moments[name].to_arrays().items()}
    data = safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    storage.write_bytes(path, data)
    return MomentsFile(tuple(names), storage.sha256_bytes(data))


def read_moments(path: Path, marked: MomentsFile | None) -> dict[str, StreamingMoments]:
    """Read the moments of a shard.

    Args:
        path: the file.
        marked: what the shard's marker says of it; None without a file.

    Raises:
        DamagedError: missing or damaged.
    """
    if marked is None:
        return {}
    arrays = safetensors.numpy.load(storage.read_hashed(path, marked.sha256))
    keys = StreamingMoments(1).to_arrays()
    return {
        name: StreamingMoments.from_arrays({key: arrays[f"{number}/{key}"] for key in keys})
        for number, name in enumerate(marked.classes)
    }


def finished_distances(
    shards: Iterable[Mapping[str, StreamingMoments]], real_moments: Mapping[str, RealMoments], draws: int, seed: int
) -> dict[str, FrechetResult]:
    """Return the distance of all shards' images to the real train images, of each class with two images or more.

    Args:
        shards: the moments of each shard, in order.
        real_moments: of each class that is compared.
        draws: pairs of Gaussian sets behind the floor.
        seed: seed of these.
    """
    totals = {name: StreamingMoments(len(of_class.real.mean)) for name, of_class in real_moments.items()}
    for of_shard in shards:
        for name, moments in of_shard.items():
            totals[name].merge(moments)
    with threadpool_limits(1):  # the manifest is to have the same bytes on any number of cores
        distances = {name: real.compare(totals[name], draws, seed) for name, real in real_moments.items()}
    return {name: distance for name, distance in distances.items() if distance is not None}
