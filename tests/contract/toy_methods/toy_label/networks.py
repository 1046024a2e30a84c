"""Networks of the translator by label and latent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Generator(nn.Module):
    """Images of sources and codes; a code is the learned vector of a class beside a latent."""

    def __init__(self, n_classes: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(n_classes, latent)
        self.encoder = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.scale_and_shift = nn.Linear(2 * latent, 2 * width)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)

    def codes(self, labels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return codes (B, 2 * latent) of labels (B,) int64 and latents (B, latent)."""
        return torch.cat([self.classes(labels), latents], 1)

    def forward(self, sources: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources (B, C, H, W) in [-1, 1]; return images alike."""
        content = F.leaky_relu(self.encoder(sources), 0.2)
        scale, shift = self.scale_and_shift(codes)[:, :, None, None].chunk(2, 1)
        return self.to_image(F.interpolate(content * (1 + scale) + shift, scale_factor=2)).tanh()


class Discriminator(nn.Module):
    """A score for each class, and the latent that an image was made with."""

    def __init__(self, n_classes: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.scores, self.latents = nn.Linear(4 * width, n_classes), nn.Linear(4 * width, latent)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B,) for labels (B,) int64, and latents (B, latent), of images (B, C, H, W)."""
        features = F.adaptive_avg_pool2d(F.leaky_relu(self.trunk(images), 0.2), 2).flatten(1)
        return self.scores(features).gather(1, labels[:, None]).squeeze(1), self.latents(features)
