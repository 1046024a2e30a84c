"""What is known of images before they are judged: features, roughness, near copies, the method's own confidence."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from rebalance import images
from rebalance.class_probe import held_out_confidence


@dataclass(frozen=True)
class RealFeatures:
    """What is known of the real images that filters are fitted to, by class; what is not there is not asked.

    Attributes:
        train: (n, D) features of every class that takes part.
        held_out: (m, D) of their val images, which no fit has seen.
        copies: (c, n, D) features of c near copies of each train image, see `near_copies`.
        texture: (n,) of train images, see `texture`.
        confidence: (m,) of held-out images, the method's own.
        others: (k, D) of some val images of every class that has any, for how sure of a class those of others are.
        others_confidence: (k,) of these by the method itself, by the class that is asked for, then by their own.
    """

    train: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]
    copies: Mapping[str, np.ndarray] = field(default_factory=dict)
    texture: Mapping[str, np.ndarray] = field(default_factory=dict)
    confidence: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    others_confidence: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    _unseen: dict[int, dict[str, dict[str, np.ndarray]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def unseen_confidence(self, name: str, of: str, seed: int) -> np.ndarray:
        """Return how sure of a class (n,) classifiers are that have not seen the images; found once for all.

        Args:
            name: the class that is asked for; there must be another.
            of: the class of the train images.
            seed: seed of the folds.
        """
        if seed not in self._unseen:
            self._unseen[seed] = held_out_confidence(self.train, seed)
        return self._unseen[seed][name][of]


@dataclass(frozen=True)
class Evidence:
    """What is known of candidates before they are judged.

    Attributes:
        features: (n, D).
        texture: (n,); None is not asked.
        confidence: (n,) probability of their class by the method itself; None where it cannot tell.
    """

    features: np.ndarray
    texture: np.ndarray | None = None
    confidence: np.ndarray | None = None


def texture(pixels: np.ndarray) -> np.ndarray:
    """Return the roughness (n,) of images (n, H, W, C) uint8: log of 1 + the mean absolute Laplacian of their gray."""
    gray = pixels.mean(3, dtype=np.float32)
    inner = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    return np.log1p(np.abs(4 * inner - around).mean((1, 2)))


def near_copies(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what counts as copies of images (n, H, W, C) uint8: flipped, moved by a pixel four ways, compressed.

    One kind after another, so that memory holds no more than one of them.
    """
    yield pixels[:, :, ::-1]
    for axis in (1, 2):
        for step in (1, -1):
            yield np.roll(pixels, step, axis)
    compressed = [np.asarray(Image.open(io.BytesIO(images.encode(image, "jpg", 75)))) for image in pixels]
    yield np.stack(compressed).reshape(pixels.shape)
