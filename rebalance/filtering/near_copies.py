"""Near copies of train images, so that a memorised image is recognised when it was changed a little."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from rebalance import imaging

# Compression that changes pixels visibly and keeps what is to be seen.
_JPG_QUALITY = 75


def copies_of(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what counts as copies of images (n, H, W, C) uint8: flipped, moved by a pixel four ways, compressed.

    One kind after another, so that memory holds no more than one of them.
    """
    yield pixels[:, :, ::-1]
    for axis in (1, 2):
        for step in (1, -1):
            yield np.roll(pixels, step, axis)
    compressed = [np.asarray(Image.open(io.BytesIO(imaging.encode(image, "jpg", _JPG_QUALITY)))) for image in pixels]
    yield np.stack(compressed).reshape(pixels.shape)
