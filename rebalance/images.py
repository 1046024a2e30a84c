"""Images: bytes to pixels as a viewer would show them, pixels to the model's square, and back to files."""

from __future__ import annotations

import functools
import io
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, features

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


_STRIP_PIXELS = 1 << 20


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
    except Image.UnidentifiedImageError as error:
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


def to_square(image: Image.Image, size_px: int, channels: int, square: str) -> np.ndarray:
    """Bring an image to the model's shape.

    Args:
        image: mode "L" or "RGB".
        size_px: side of the result.
        channels: 1 or 3.
        square: "crop" (centre), "pad" (with the border's mean colour) or "squash".

    Returns:
        (size_px, size_px, channels) uint8.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    size = (size_px, size_px)
    if square == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    elif square == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=_border_colour(image))
    else:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size_px, size_px, channels)


def _border_colour(image: Image.Image) -> int | tuple[int, ...]:
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(0).round().astype(int)
    return int(border[0]) if len(border) == 1 else tuple(int(value) for value in border)


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Turn (B, H, W, C) uint8 pixels into (B, C, H, W) float32 in [-1, 1], channels-last in memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Turn (B, C, H, W) float images in [-1, 1] into (B, H, W, C) uint8 on the CPU."""
    scaled = images.detach().float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def encode(pixels: np.ndarray, file_format: str, quality: int) -> bytes:
    """Encode (H, W, C) uint8 pixels, C 1 or 3, as "jpg", "png" or "webp" (lossy), without metadata."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if file_format == "jpg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    elif file_format == "webp":
        image.save(buffer, "WEBP", quality=quality, method=4)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def format_of(data: bytes) -> str:
    """Return "jpg", "png" or "webp" by the first 12 bytes of a file, "" for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def jpeg_quality(data: bytes) -> int:
    """Return the quality, 1 to 100, whose luminance table is nearest to that of a JPEG file."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        found = np.array(image.quantization[min(image.quantization)], float)
    return 1 + int(np.abs(_luminance_tables() - found).sum(1).argmin())


@functools.cache
def _luminance_tables() -> np.ndarray:
    """The first quantization tables (100, 64) that this encoder writes, by quality from 1 on."""
    tables, pixel = [], Image.new("L", (8, 8))
    for quality in range(1, 101):
        buffer = io.BytesIO()
        pixel.save(buffer, "JPEG", quality=quality)
        tables.append(Image.open(buffer).quantization[0])  # type: ignore[attr-defined]
    return np.array(tables, float)


def encoder_version(file_format: str) -> str:
    """Return the name and version of the library that encodes `file_format`, because it decides the bytes."""
    library = {"jpg": "libjpeg_turbo" if features.check("libjpeg_turbo") else "jpg", "webp": "webp", "png": "zlib"}
    name = library[file_format]
    version = features.version(name)
    return f"{name} {version}"


def grid(rows: Sequence[Sequence[np.ndarray]], gap_px: int = 2, min_side_px: int = 0) -> Image.Image:
    """Lay images out in rows on white; short rows end in white cells.

    Args:
        rows: images (H, W, C) uint8, all of one shape.
        gap_px: white pixels between images.
        min_side_px: small images are enlarged by a whole factor to at least this side.
    """
    height, width = rows[0][0].shape[:2]
    factor = max(1, math.ceil(min_side_px / max(height, width)))
    step_x, step_y = width * factor + gap_px, height * factor + gap_px
    sheet = Image.new("RGB", (max(map(len, rows)) * step_x + gap_px, len(rows) * step_y + gap_px), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap_px + x * step_x, gap_px + y * step_y))
    return sheet


def png_bytes(sheet: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
