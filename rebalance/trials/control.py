"""Translations of rich classes within themselves, so that being synthetic says nothing of an image's class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rebalance import imaging
from rebalance.generation.loaded_run import LoadedRun, Model
from rebalance.generation.provenance import Provenance
from rebalance.generation.slots import keyed_rng
from rebalance.methods.base import Conditions
from rebalance.training import reference_labels


@dataclass(frozen=True)
class Translation:
    """A translated image.

    Attributes:
        pixels: (H, W, C) uint8.
        provenance: its source, and its reference if the method takes one.
    """

    pixels: np.ndarray
    provenance: Provenance


def translates(run: LoadedRun) -> bool:
    """Return True if the run's method makes images from source images, as control images need."""
    return run.recipe.options.inputs.source


def rich_translations(
    run: LoadedRun, class_name: str, n: int, seed: int, device: torch.device
) -> Iterator[Translation]:
    """Translate images of a class that takes part in training within itself: a random one into the style of another.

    Args:
        run: the run, whose method `translates`.
        class_name: the class; one that no model was trained on gives nothing.
        n: images.
        seed: seed of the draws.
        device: where the model is.
    """
    model = next((model for model in run.models if class_name in model.unit.classes), None)
    if model is None:
        return
    rng, batch = keyed_rng("control", class_name, seed), run.recipe.generation.batch
    rows, inputs = run.index.rows("train", class_name), model.method.inputs
    parts = 2 if inputs.references else 1
    for first in range(0, n, batch):
        drawn = rng.choice(rows, (2, min(batch, n - first)))
        latents = rng.standard_normal((drawn.shape[1], inputs.latent_size), np.float32)
        pixels = _translated(run, model, drawn[0], drawn[1], latents, device)
        for image, *of_image in zip(pixels, *drawn[:parts].tolist(), strict=True):
            yield Translation(image, Provenance("images", tuple(map(run.index.name, of_image))))


@torch.inference_mode()
def _translated(
    run: LoadedRun, model: Model, sources: np.ndarray, others: np.ndarray, latents: np.ndarray, device: torch.device
) -> np.ndarray:
    """Return the images (n, H, W, C) uint8 that a model makes of sources in the style of other images.

    Args:
        run: the run.
        model: one of its models.
        sources: ids (n,) of the sources.
        others: ids (n,) of the references, or, for a method that takes none, of images whose labels are taken.
        latents: (n, latent_size) float32.
        device: where the model is.
    """

    def squares(rows: np.ndarray) -> torch.Tensor:
        pixels = np.stack([run.index.square(int(row), run.recipe.data) for row in rows])
        return imaging.to_float(torch.from_numpy(pixels)).to(device)

    inputs = model.method.inputs
    conditions = Conditions(
        torch.tensor(reference_labels(others.tolist(), model.modalities, run.modalities), device=device),
        squares(others) if inputs.references else None,
        torch.from_numpy(latents).to(device) if inputs.latent_size else None,
    )
    return imaging.to_pixels(model.method.make(squares(sources), model.method.codes(conditions)))
