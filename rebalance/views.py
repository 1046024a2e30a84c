"""One view for all images that are compared, so that nothing but the pictures differs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from rebalance import images
from rebalance.config import EXTRACTORS, FeatureOptions
from rebalance.errors import InputError
from rebalance.features import FeatureExtractor
from rebalance.index import ImageIndex

_MAX_SIDE_PX = 1024


@dataclass(frozen=True)
class View:
    """How images are looked at, the same for real and synthetic ones: as colour squares of one size.

    Attributes:
        size_px: their side.
        square: how other shapes become square.
        encoding: format and quality that real images go through, as the synthetic ones have; None: none.
    """

    size_px: int
    square: str
    encoding: tuple[str, int] | None

    def of_real(self, image: Image.Image) -> np.ndarray:
        """Bring a real image to the synthetic ones' shape and through their file format."""
        pixels = self.of_synthetic(image)
        if self.encoding is None:
            return pixels
        if image.mode == "L":
            pixels = pixels[..., :1]
        return self.of_synthetic(Image.open(io.BytesIO(images.encode(pixels, *self.encoding))))

    def of_synthetic(self, image: Image.Image) -> np.ndarray:
        """Bring an image to the shape, (size_px, size_px, 3) uint8."""
        return images.to_square(image, self.size_px, 3, self.square)


@dataclass(frozen=True)
class RealImages:
    """Real images, looked at as the synthetic ones are.

    Attributes:
        index: the real data set.
        look: the view.
        extractor: the features.
    """

    index: ImageIndex
    look: View
    extractor: FeatureExtractor

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return features (n, D) of images, from the user's cache where they are known."""
        keys = [f"{content} {self.look} {PIL.__version__}" for content in self.index.column("hash")[rows]]
        return self.extractor.extract_known(keys, (self.pixels(row) for row in rows.tolist()))

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, (size_px, size_px, 3) uint8."""
        return self.look.of_real(self.index.load(row))

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return nothing: what made the synthetic images says nothing of real ones."""
        return {}


def view_for(
    largest_px: int, manifest: Mapping[str, Any], square: str | None, encoding: tuple[str, int] | None
) -> View:
    """Return the view of images whose largest side is known.

    Args:
        largest_px: that side.
        manifest: of the output that they are, empty for anything else.
        square: how other shapes become square; None: as in the output, else "crop".
        encoding: format and quality that real images go through.
    """
    return View(min(largest_px, _MAX_SIDE_PX), square or manifest.get("square", "crop"), encoding)


def feature_options(
    manifest: Mapping[str, Any], extractor: str | None, input_px: int | None, weights: str | Path | None
) -> FeatureOptions:
    """Return the features asked for, else the run's, else the default."""
    known = manifest.get("features", {})
    if input_px is None and "input_px" in known:
        input_px = known["input_px"]
    return FeatureOptions(
        extractor=extractor if extractor in EXTRACTORS else known.get("extractor", "efficientnet"),
        input_px=224 if input_px is None else input_px,
        layer=known.get("layer") if input_px == known.get("input_px") else None,
        weights=str(weights) if weights else "",
    )


def check_known(made: Iterable[str], index: ImageIndex) -> None:
    """Check that there are synthetic images, by their classes, and that DATA has these classes.

    Raises:
        InputError: no synthetic image, or one of a class that is unknown.
    """
    made = sorted(made)
    if not made:
        raise InputError("there is no synthetic image")
    unknown = [name for name in made if name not in index.classes]
    if unknown:
        raise InputError(
            "synthetic images of classes that DATA does not have", value=unknown[:5], allowed=", ".join(index.classes)
        )
