"""Image files to pixels, as a viewer would show them."""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 128 * 1024 * 1024
"""Images that declare more pixels than this are refused before they are decoded."""

MAX_BYTES = 4 * MAX_PIXELS
"""Files larger than this are refused before they are read."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
"""Formats that are decoded, in Pillow's names. Not all that Pillow knows: its EPS, for one, runs another program."""

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
"""Endings by which a file of a data-set folder counts as an image."""


_STRIP_PIXELS = 1 << 20  # 3 MiB of RGB


class BadImageError(Exception):
    """An image that cannot be used; the text is the reason shown to the user."""


class _Silence:
    """No warnings while any thread decodes; `catch_warnings` in each would put the filters back in the wrong order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._filters.__exit__(None, None, None)


_SILENCE = _Silence()


@dataclass(frozen=True)
class Dimensions:
    """Width and height of an image as shown, in pixels."""

    width: int
    height: int


def decode(data: bytes) -> Image.Image:
    """Decode an image file to gray ("L") or "RGB" as a viewer would show it.

    The first frame is taken, EXIF orientation applied, transparency laid over white, and 16-bit and float samples
    brought to 8 bits.

    Raises:
        BadImageError: with the reason: empty, not an image, truncated, damaged, or too large.
    """
    if not data:
        raise BadImageError("zero-size file")
    try:
        with _SILENCE, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise BadImageError(f"too large: {image.width} x {image.height} pixels")
            image.load()
            return _displayed(image)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImageError("too large: decompression bomb") from error
    except MemoryError as error:
        raise BadImageError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise many kinds; each means that the file is unusable
        kind = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadImageError(f"{kind}: {error}") from error


def _displayed(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bit(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Yield first and last row of strips of about a million pixels, so that large images cost little beside them."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _over_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, bottom in _strips(image):
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return result


def _eight_bit(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    low, high = samples.min(), samples.max()
    if not np.isfinite((low, high)).all():
        raise BadImageError("damaged: samples that are not finite")
    scale = 1.0
    if image.mode == "F" and low >= 0 and high <= 1:
        scale = 255.0
    elif high > 255 or image.mode.startswith("I;16"):
        scale = 1 / 257
    result = np.empty(samples.shape, np.uint8)
    for top, bottom in _strips(image):
        result[top:bottom] = (samples[top:bottom] * scale).clip(0, 255).round()
    return Image.fromarray(result)


def probe(data: bytes) -> Dimensions:
    """Decode an image file fully and return its dimensions as shown.

    Raises:
        BadImageError: the file cannot be used.
    """
    image = decode(data)
    return Dimensions(*image.size)
