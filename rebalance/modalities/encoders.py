"""Embeddings whose clusters are the modalities: contrastive (the paper's) and VAE (its ablation)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rebalance.config import EncoderOptions, Recipe
from rebalance.learning.batches import ImageBatch
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable
from rebalance.networks import losses
from rebalance.networks.augmentations import distort_content
from rebalance.networks.encoder import Backbone, ProjectionHead, VariationalAutoencoder
from rebalance.runtime.devices import without_waiting


class Encoder(Trainable):
    """Something to train that embeds images."""

    def __init__(self, options: EncoderOptions, networks: dict[str, nn.Module]) -> None:
        self.options = options
        self.networks = networks

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All networks at once."""
        return (Phase("encoder", tuple(self.networks)),)

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """One rate for all."""
        return dict.fromkeys(self.networks, NetworkOptimizer(self.options.lr))

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, d) of images (B, C, H, W) in [-1, 1]."""


class ContrastiveEncoder(Encoder):
    """SimCLR with augmentations that change content and keep style (paper, section 3.1)."""

    def forward(self, batch: ImageBatch, context: StepContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Project two views of every image, in one pass."""
        views = torch.cat([batch.images, batch.images])
        views = distort_content(views, self.options.augmentations, context.draws)
        first, second = self.networks["projection"](self.networks["backbone"](views)).chunk(2)
        return first, second

    def loss(self, phase: str, batch: ImageBatch, outputs: Any, context: StepContext) -> Loss:
        """NT-Xent between the two views."""
        first, second = outputs
        value = losses.nt_xent(first, second, self.options.temperature)
        return Loss(value, {"nt_xent": value})

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return backbone features (B, width), before the projection head."""
        return self.networks["backbone"](images)


class VariationalEncoder(Encoder):
    """A VAE; the paper's ablation shows that its modalities are worse."""

    @property
    def vae(self) -> VariationalAutoencoder:
        """Return the network."""
        return cast(VariationalAutoencoder, self.networks["vae"])

    def forward(self, batch: ImageBatch, context: StepContext) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode, draw, decode: mean, log-variance and reconstruction."""
        vae = self.vae
        mean, log_variance = vae.encode(batch.images)
        noise = without_waiting(context.draws.normal(*mean.shape), mean.device).to(mean.dtype)
        return mean, log_variance, vae.decode(mean + noise * (0.5 * log_variance).exp())

    def loss(self, phase: str, batch: ImageBatch, outputs: Any, context: StepContext) -> Loss:
        """Squared error summed over pixels, plus KL."""
        mean, log_variance, reconstruction = outputs
        error = F.mse_loss(reconstruction.float(), batch.images, reduction="sum") / len(batch.images)
        kl = losses.gaussian_kl(mean.float(), log_variance.float())
        return Loss(error + self.options.kl_weight * kl, {"reconstruction": error, "kl": kl})

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return mean codes (B, latent)."""
        return self.vae.encode(images)[0]


def make_encoder(recipe: Recipe) -> Encoder:
    """Build the encoder that `modalities.by` names, with weights drawn from the recipe's seed."""
    options, data = recipe.modalities.encoder, recipe.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.modalities.by == "vae":
            vae = VariationalAutoencoder(data.channels, data.size_px, options.width, options.latent)
            return VariationalEncoder(options, {"vae": vae})
        backbone = Backbone(data.channels, options.width, options.blocks, options.stem)
        projection = ProjectionHead(backbone.width, options.projection)
        return ContrastiveEncoder(options, {"backbone": backbone, "projection": projection})


@torch.inference_mode()
def embed(encoder: Encoder, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Return L2-normalised features (n, d) float32 of batches of images (B, C, H, W), networks in evaluation mode."""
    for network in encoder.networks.values():
        network.eval()
    parts = [F.normalize(encoder.features(batch).float()).cpu().numpy() for batch in batches]
    return np.concatenate(parts)
