"""Tools: images from files to pixels, to the model's square, to tensors, and back."""

from rebalance.imaging.decoding import (
    EXTENSIONS,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    BadImageError,
    Dimensions,
    decode,
    probe,
)
from rebalance.imaging.encoding import encode, encoder_version, format_of, jpeg_quality, png_bytes
from rebalance.imaging.grids import grid
from rebalance.imaging.squares import to_float, to_pixels, to_square

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImageError",
    "Dimensions",
    "decode",
    "encode",
    "encoder_version",
    "format_of",
    "grid",
    "jpeg_quality",
    "png_bytes",
    "probe",
    "to_float",
    "to_pixels",
    "to_square",
]
