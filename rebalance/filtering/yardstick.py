"""What a class's finished images are held against, so that their Fréchet distance can be told without the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rebalance import files, frechet


@dataclass(frozen=True)
class Yardstick:
    """The real train images of a class.

    Attributes:
        projection: principal components of the pooled real features.
        real: moments of the class's real train images there.
    """

    projection: frechet.Projection
    real: frechet.Moments

    def measure(self, features: np.ndarray) -> frechet.StreamingMoments:
        """Return the moments of images by their features (n, D)."""
        found = frechet.StreamingMoments(len(self.real.mean))
        found.add(self.projection.apply(features))
        return found

    def compare(self, images: frechet.StreamingMoments, draws: int, seed: int) -> frechet.FrechetResult | None:
        """Return the distance of images to the real ones as the class's gate measures it; None for fewer than two."""
        return frechet.compare_moments(self.real, images.shrunk(), draws=draws, seed=seed) if images.n > 1 else None


def save_yardsticks(path: Path, yardsticks: Mapping[str, Yardstick]) -> dict[str, Any]:
    """Write the arrays of yardsticks that share a projection; return the rest as plain values, with their hash."""
    projection, names = next(iter(yardsticks.values())).projection, sorted(yardsticks)
    tensors = {"centre": projection.centre, "axes": projection.axes}
    # By number, because a class's name may hold anything.
    for number, name in enumerate(names):
        real = yardsticks[name].real
        tensors |= {f"{number}/mean": real.mean, f"{number}/covariance": real.covariance}
    files.write_bytes(path, safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
    return {"sha256": files.sha256_file(path), "n": {name: yardsticks[name].real.n for name in names}}


def load_yardsticks(path: Path, values: Mapping[str, Any]) -> dict[str, Yardstick]:
    """Read what `save_yardsticks` wrote and returned.

    Raises:
        DamagedError: the arrays are missing or damaged.
    """
    tensors = safetensors.numpy.load(files.read_hashed(path, values["sha256"]))
    projection = frechet.Projection(tensors["centre"], tensors["axes"])
    return {
        name: Yardstick(projection, frechet.Moments(tensors[f"{number}/mean"], tensors[f"{number}/covariance"], n))
        for number, (name, n) in enumerate(sorted(values["n"].items()))
    }
