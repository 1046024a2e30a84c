"""Networks of two or three layers for 8 px images, and losses that several toys share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Critic(nn.Module):
    """Scores of images: one for each class, or one in all."""

    def __init__(self, channels: int, width: int, scores: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten())
        self.scores = nn.Linear(width * 16, scores)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (B, width * 16) of images (B, C, 8, 8)."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the scores (B,) for labels (B,), or all of them (B, scores)."""
        scores = self.scores(self.features(images))
        return scores if labels is None else scores.gather(1, labels[:, None]).squeeze(1)


class Encoder(nn.Module):
    """Content (B, width, 4, 4) of images (B, C, 8, 8)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images."""
        return self.layers(images)


class Painter(nn.Module):
    """Images (B, C, 8, 8) of content (B, width, 4, 4), which a code (B, d) scales and shifts."""

    def __init__(self, channels: int, width: int, code_size: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Linear(code_size, 2 * width)
        self.to_image = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, content: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Paint images in [-1, 1]."""
        scale, shift = self.scale_and_shift(codes)[:, :, None, None].chunk(2, 1)
        return self.to_image(F.interpolate(content * (1 + scale) + shift, scale_factor=2)).tanh()


class Translator(nn.Module):
    """Images of sources and codes."""

    def __init__(self, channels: int, width: int, code_size: int) -> None:
        super().__init__()
        self.encoder, self.painter = Encoder(channels, width), Painter(channels, width, code_size)

    def forward(self, sources: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources (B, C, 8, 8) by codes (B, d)."""
        return self.painter(self.encoder(sources), codes)


class FromNoise(nn.Module):
    """Content (B, width, 4, 4) of codes (B, d)."""

    def __init__(self, width: int, code_size: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(code_size, width * 16)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Make content."""
        return F.leaky_relu(self.layer(codes), 0.2).unflatten(1, (self.width, 4, 4))


def gradient_penalty(
    critic: Critic, real: torch.Tensor, fake: torch.Tensor, labels: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Return the mean of (|gradient| - 1)^2 between real and made images; `share` (B, 1, 1, 1) says where."""
    between = (share * real + (1 - share) * fake.to(real.dtype)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between, labels).float().sum(), between, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()
