"""Small classifiers of images, for the downstream study."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rebalance.networks.encoder import Backbone

_POOLED_PX = 2


class ConvClassifier(nn.Module):
    """Stages of 3 x 3 convolutions, batch norm and ReLU, each ending in max pooling; then one linear layer."""

    def __init__(self, channels: int, n_classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, n_convolutions in enumerate(blocks):
            stage_width = width * 2**stage
            for _ in range(n_convolutions):
                layers += [nn.Conv2d(channels, stage_width, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(stage_width), nn.ReLU()]
                channels = stage_width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_POOLED_PX), nn.Flatten())
        self.head = nn.Linear(channels * _POOLED_PX**2, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) in [-1, 1] to logits (B, n_classes)."""
        return self.head(self.features(images))


class ResidualClassifier(nn.Module):
    """A ResNet of basic blocks with one linear layer."""

    def __init__(self, channels: int, n_classes: int, width: int, blocks: Sequence[int], stem: str) -> None:
        super().__init__()
        self.features = Backbone(channels, width, blocks, stem)
        self.head = nn.Linear(self.features.width, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) in [-1, 1] to logits (B, n_classes)."""
        return self.head(self.features(images))
