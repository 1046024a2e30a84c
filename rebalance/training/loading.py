"""What a run gives once it is trained: its models, and its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rebalance import images
from rebalance.config import Recipe
from rebalance.errors import InputError
from rebalance.features import ENCODER, FeatureExtractor
from rebalance.methods import Method, make_method
from rebalance.modalities import Modalities, make_encoder
from rebalance.training.checkpoints import CheckpointFolder, load_network
from rebalance.training.run import RunDirectory, Unit


def reference_labels(image_ids: Sequence[int], labels: tuple[int, ...], modalities: Modalities) -> list[int]:
    """Return the translator class of each image, 0 for those of a target that was left out of training."""
    numbers = {modality: label for label, modality in enumerate(labels)}
    return [numbers.get(modalities.of_image(int(image_id)), 0) for image_id in image_ids]


def load_method(
    directory: RunDirectory, unit: Unit, modalities: Modalities, recipe: Recipe, device: torch.device
) -> tuple[Method, str]:
    """Load a trained model for generation, averaged weights where there are any; return it with their SHA-256.

    Raises:
        InputError: its training has not ended.
        DamagedError: its checkpoint is damaged.
    """
    folder = CheckpointFolder(directory.checkpoints(unit.name))
    if folder.last_step() < recipe.training.steps:
        raise InputError(
            f"the run's model {unit.name} stands at step {folder.last_step()} of {recipe.training.steps}",
            remedy="Run the same `rebalance fit` command again to finish it",
        )
    weights, digest = folder.generating_weights()
    method = make_method(recipe, len(unit.labels(modalities)), seed=recipe.seed)
    for name in method.generating:
        prefix = f"averaged/{name}/" if name in method.averaged else f"{name}/"
        load_network(method.networks[name], weights, prefix)
        method.networks[name].to(device).eval().requires_grad_(False)
    return method, digest


def load_encoder(directory: RunDirectory, recipe: Recipe, device: torch.device) -> FeatureExtractor:
    """Load the encoder that found the modalities, as features of any images.

    Raises:
        InputError: the run has none.
        DamagedError: its checkpoint is damaged.
    """
    folder = CheckpointFolder(directory.checkpoints(ENCODER))
    if not folder.paths():
        raise InputError(
            f"--features encoder: the run {directory.path} has no encoder, because it did not cluster its classes",
            remedy="Use --features efficientnet",
        )
    encoder = make_encoder(recipe)
    weights, digest = folder.generating_weights()
    for name, network in encoder.networks.items():
        load_network(network, weights, f"{name}/")
        network.to(device).eval().requires_grad_(False)
    side, channels = recipe.data.size_px, recipe.data.channels

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        batch = images.to_float(torch.from_numpy(pixels)).to(device)
        if batch.shape[1] != channels:
            batch = batch.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        batch = F.interpolate(batch, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
        return F.normalize(encoder.features(batch).float()).cpu().numpy()

    dimensions = extract(np.zeros((1, side, side, channels), np.uint8)).shape[1]
    return FeatureExtractor(ENCODER, dimensions, recipe.features.batch, extract, f"{digest} {device.type}")


def encoder_of(run: str | Path | None, device: torch.device) -> FeatureExtractor:
    """Load the encoder of a run that a caller may have named.

    Raises:
        InputError: none was named, or it has no encoder.
        DamagedError: its recipe or checkpoint is damaged.
    """
    if run is None:
        raise InputError("--features encoder needs --run: the run whose encoder is meant")
    directory = RunDirectory(Path(run))
    return load_encoder(directory, directory.recipe(), device)
