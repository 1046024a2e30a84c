"""Images of any shape as the model's squares; pixels as tensors and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps


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
