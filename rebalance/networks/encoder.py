"""Embedding networks behind the modalities: a ResNet-18-style backbone, its projection head, and a VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """The basic block of ResNet-18 (He et al., 2016), post-activation, with batch norm."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        # Strided here, not in the convolution: with AVX2 and channels_last, the weights' gradient of a strided 1x1
        # convolution of fewer than 8 channels overwrites memory (uxlfoundation/oneDNN#6035).
        seen = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(seen))


class Backbone(nn.Module):
    """ResNet of basic blocks; the first stage keeps the size, later ones halve it and double the channels."""

    def __init__(self, channels: int, width: int, blocks: Sequence[int], stem: str) -> None:
        super().__init__()
        if stem == "large":
            layers = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(3, 2, 1))
        else:
            layers = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.width = width
        for stage, n_blocks in enumerate(blocks):
            stage_width = width * 2**stage
            for block in range(n_blocks):
                stride = 2 if stage and not block else 1
                layers.append(ResidualBlock(self.width, stage_width, stride))
                self.width = stage_width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) in [-1, 1] to pooled features (B, width of the last stage)."""
        return self.layers(images).mean((2, 3))


class ProjectionHead(nn.Sequential):
    """The two-layer head that NT-Xent is applied to and that is thrown away after training (SimCLR)."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))


class VariationalAutoencoder(nn.Module):
    """A convolutional VAE on images halved to 4 px and back; its mean code is the embedding."""

    def __init__(self, channels: int, size_px: int, width: int, latent: int) -> None:
        super().__init__()
        downs = max(1, (size_px // 4).bit_length() - 1)
        widths = [min(width * 2**i, width * 8) for i in range(downs)]
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in zip(inputs, widths, strict=True)),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.to_mean = nn.Linear(widths[-1] * 16, latent)
        self.to_log_variance = nn.Linear(widths[-1] * 16, latent)
        self.from_latent = nn.Linear(latent, widths[-1] * 16)
        outputs = [*reversed(widths[:-1]), channels]
        self.decoder = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in zip(reversed(widths), outputs, strict=True))
        self.size_px = size_px

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance, both (B, latent), of images (B, channels, H, W) in [-1, 1]."""
        hidden = self.encoder(images)
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes (B, latent) to images (B, channels, H, W) in [-1, 1]."""
        x = F.relu(self.from_latent(codes)).unflatten(1, (-1, 4, 4))
        for number, conv in enumerate(self.decoder):
            last = number == len(self.decoder) - 1
            size = self.size_px if last else 4 * 2 ** (number + 1)
            x = conv(F.interpolate(x, size=size, mode="nearest"))
            x = torch.tanh(x) if last else F.relu(x)
        return x
