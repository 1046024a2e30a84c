"""Decoded images, and the random generators of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rebalance import imaging


def step_rng(seed: int, stream: int, step: int) -> np.random.Generator:
    """Return the generator of one step: counter-based, so that any step can be entered directly."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))


@dataclass(frozen=True)
class ImageStore:
    """The model's squares of a set of images, decoded once.

    Attributes:
        image_ids: (n,) int64, ascending.
        pixels: (n, H, W, C) uint8, in memory or mapped from a file.
    """

    image_ids: np.ndarray
    pixels: np.ndarray

    def positions(self, image_ids: np.ndarray) -> np.ndarray:
        """Return where images lie in `pixels`."""
        return np.searchsorted(self.image_ids, image_ids)

    def tensor(self, positions: np.ndarray) -> torch.Tensor:
        """Return images at positions (B,) as (B, C, H, W) float32 in [-1, 1]."""
        return imaging.to_float(torch.from_numpy(self.pixels[positions]))
