"""Images side by side in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


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
