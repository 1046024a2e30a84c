"""Translations of rich classes, so that being synthetic says nothing of an image's class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rebalance import images
from rebalance.generation import LoadedRun, Model, keyed_rng
from rebalance.training import reference_labels


@dataclass(frozen=True)
class Translation:
    """A translated image.

    Attributes:
        pixels: (H, W, C) uint8.
        made_from: names of its source and its reference.
    """

    pixels: np.ndarray
    made_from: tuple[str, str]


def rich_translations(
    run: LoadedRun, class_name: str, n: int, seed: int, device: torch.device
) -> Iterator[Translation]:
    """Translate images of a class that takes part in training within itself: a random one into the style of another.

    Args:
        run: the run.
        class_name: the class; one that no model was trained on gives nothing.
        n: images.
        seed: seed of the draws.
        device: where the model is.
    """
    model = next((model for model in run.models if class_name in model.unit.classes), None)
    if model is None:
        return
    rng, batch = keyed_rng("control", class_name, seed), run.recipe.generation.batch
    rows = run.index.rows("train", class_name)
    for first in range(0, n, batch):
        drawn = rng.choice(rows, (2, min(batch, n - first)))
        pixels = _translated(run, model, drawn[0], drawn[1], device)
        for image, source, reference in zip(pixels, *drawn.tolist(), strict=True):
            yield Translation(image, (run.index.name(source), run.index.name(reference)))


@torch.inference_mode()
def _translated(
    run: LoadedRun, model: Model, sources: np.ndarray, references: np.ndarray, device: torch.device
) -> np.ndarray:
    def squares(rows: np.ndarray) -> torch.Tensor:
        pixels = np.stack([run.index.square(int(row), run.recipe.data) for row in rows])
        return images.to_float(torch.from_numpy(pixels)).to(device)

    labels = reference_labels(references.tolist(), model.unit.labels(run.modalities), run.modalities)
    codes = model.method.reference_codes(squares(references), torch.tensor(labels, device=device))
    return images.to_pixels(model.method.synthesize(squares(sources), codes))
