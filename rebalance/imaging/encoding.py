"""Pixels to image files, and what a file says of how it was encoded."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, features


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
        table = np.array(image.quantization[min(image.quantization)], float)
    return 1 + int(np.abs(_luminance_tables() - table).sum(1).argmin())


@functools.cache
def _luminance_tables() -> np.ndarray:
    """Return the first quantization tables (100, 64) that this encoder writes, by quality from 1 on."""
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


def png_bytes(sheet: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
