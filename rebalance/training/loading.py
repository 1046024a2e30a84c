"""What a run gives once it is trained: its models, and its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rebalance import imaging
from rebalance.config import Recipe
from rebalance.errors import InputError
from rebalance.learning.checkpoints import CheckpointFolder, load_network
from rebalance.measures.features import ENCODER, FeatureExtractor
from rebalance.methods.base import BuildContext, Method, TargetLabels, TrainedStage, build_method
from rebalance.modalities import Modalities, make_encoder
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import Stage, Unit


def reference_labels(image_ids: Sequence[int], labels: tuple[int, ...], modalities: Modalities) -> list[int]:
    """Return the translator class of each image, 0 for those of a target that was left out of training."""
    numbers = {modality: label for label, modality in enumerate(labels)}
    return [numbers.get(modalities.of_image(int(image_id)), 0) for image_id in image_ids]


def target_labels(unit: Unit, target: str, modalities: Modalities) -> TargetLabels:
    """Return the translator classes of a target and of its sources, with their numbers of images."""
    labels = unit.labels(modalities)

    def counted(class_name: str) -> dict[int, int]:
        own = (modality for modality in modalities.of_class(class_name) if modality in labels)
        return {labels.index(modality): len(modalities.images_of(modality)) for modality in own}

    sources: dict[int, int] = {}
    for class_name in unit.sources.get(target, ()):
        sources |= counted(class_name)
    return TargetLabels(counted(target), sources)


def trained_stage(directory: RunDirectory, stage: Stage, modalities: Modalities) -> TrainedStage:
    """Return what a finished stage gives to later ones.

    Raises:
        DamagedError: its checkpoint is missing or damaged.
    """
    weights, _ = CheckpointFolder(directory.checkpoints(stage.name)).generating_weights()
    return TrainedStage(stage.unit.labels(modalities), weights)


def load_method(
    directory: RunDirectory, stage: Stage, modalities: Modalities, recipe: Recipe, device: torch.device
) -> tuple[Method, str]:
    """Load a trained model for generation, averaged weights where there are any; return it with their SHA-256.

    Args:
        directory: the run.
        stage: the last stage of the model.
        modalities: the run's modalities.
        recipe: the run's recipe.
        device: where to generate.

    Raises:
        InputError: its training has not ended.
        DamagedError: its checkpoint is damaged.
    """
    folder = CheckpointFolder(directory.checkpoints(stage.name))
    if folder.last_step() < stage.training.steps:
        raise InputError(
            f"the run's model {stage.name} stands at step {folder.last_step()} of {stage.training.steps}",
            remedy="Run the same `rebalance fit` command again to finish it",
        )
    weights, digest = folder.generating_weights()
    labels = stage.unit.labels(modalities)
    method = build_method(BuildContext(recipe, stage.plan.name, labels, recipe.seed))
    trained = TrainedStage(labels, weights)
    for name in method.generating:
        network = method.module(name)
        trained.load(name, network)
        network.to(device).eval().requires_grad_(False)
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
            f"`features`: the run {directory.path} has no encoder, because it did not cluster its classes",
            remedy="Use efficientnet",
        )
    encoder = make_encoder(recipe)
    weights, digest = folder.generating_weights()
    for name, network in encoder.networks.items():
        load_network(network, weights, f"{name}/")
        network.to(device).eval().requires_grad_(False)
    side, channels = recipe.data.size_px, recipe.data.channels

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        batch = imaging.to_float(torch.from_numpy(pixels)).to(device)
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
        raise InputError("`features`: encoder needs `run`, the run whose encoder is meant")
    directory = RunDirectory(Path(run))
    return load_encoder(directory, directory.recipe(), device)
