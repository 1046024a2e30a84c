"""One view for all images that are compared, so that nothing but the pictures differs."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rebalance import imaging

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
        return self.of_synthetic(Image.open(io.BytesIO(imaging.encode(pixels, *self.encoding))))

    def of_synthetic(self, image: Image.Image) -> np.ndarray:
        """Bring an image to the shape, (size_px, size_px, 3) uint8."""
        return imaging.to_square(image, self.size_px, 3, self.square)


def view_for(largest_px: int, square: str, encoding: tuple[str, int] | None) -> View:
    """Return the view of images whose largest side is known.

    Args:
        largest_px: that side.
        square: how other shapes become square.
        encoding: format and quality that real images go through.
    """
    return View(min(largest_px, _MAX_SIDE_PX), square, encoding)
