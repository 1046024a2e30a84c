"""Contact sheets: real images beside synthetic ones and what these were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rebalance import imaging
from rebalance.shards import ShardImage, read_synthetic
from rebalance.training import RunDirectory


def contact_sheet(run: RunDirectory, out: Path, columns: int = 12) -> Image.Image:
    """Draw, for every target, real images above synthetic ones, and below each what it was made from.

    There is a row of sources and one of references, as far as the run's method takes them; of several references the
    first is shown.

    Args:
        run: the run.
        out: a complete output of it.
        columns: images a row.
    """
    recipe, index, plan = run.recipe(), run.index(), run.plan()
    ids = {index.name(row): row for row in range(index.table.num_rows)}
    inputs = recipe.options.inputs
    parts = [*(["its source"] if inputs.source else []), *(["its reference"] if inputs.references else [])]

    def load(image_id: int) -> np.ndarray:
        return index.square(image_id, recipe.data)

    rows, titles = [], []
    for name, images in _first_images(out, [target.name for target in plan.targets], columns).items():
        if images:
            rows.append([load(int(row)) for row in index.rows("train", name)[:columns]])
            rows.append([image.pixels for image in images])
            made_from = [image.record.provenance.images for image in images]
            rows += [[load(ids[names[part]]) for names in made_from] for part in range(len(parts))]
            titles += [f"{name}: real", "synthetic", *parts]
    return _titled(imaging.grid(rows, gap_px=3, min_side_px=48), titles)


def _first_images(out: Path, targets: Sequence[str], n: int) -> dict[str, list[ShardImage]]:
    """Return the first n synthetic images of each target."""
    images: dict[str, list[ShardImage]] = {name: [] for name in targets}
    for image in read_synthetic(out):
        of_class = images[image.record.class_name]
        if len(of_class) < n:
            of_class.append(image)
    return images


def _titled(sheet: Image.Image, titles: Sequence[str]) -> Image.Image:
    margin = 10 + 7 * max(map(len, titles))
    titled = Image.new("RGB", (sheet.width + margin, sheet.height), "white")
    titled.paste(sheet, (margin, 0))
    draw, step = ImageDraw.Draw(titled), sheet.height / len(titles)
    for number, title in enumerate(titles):
        draw.text((6, int((number + 0.5) * step) - 6), title, fill="black")
    return titled
