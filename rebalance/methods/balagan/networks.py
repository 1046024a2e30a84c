"""BalaGAN's networks (paper, section 3.2), which are FUNIT's with a second head on the discriminator."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from rebalance.networks.blocks import (
    ActivationFirstResidual,
    AdaptiveResidual,
    DownConv,
    InstanceNormResidual,
    PaddedConv,
    adaptive_instance_norm,
    init_weights,
    instance_norm,
)


class SourceEncoder(nn.Module):
    """E_source: image to content code."""

    def __init__(
        self, channels: int, base_filters: int, downs: int, residual_blocks: int, stem_kernel: int, down_kernel: int
    ) -> None:
        super().__init__()
        self.stem = PaddedConv(channels, base_filters, stem_kernel)
        widths = [base_filters * 2**i for i in range(downs + 1)]
        self.downs = nn.ModuleList(DownConv(widths[i], widths[i + 1], down_kernel) for i in range(downs))
        self.residuals = nn.ModuleList(InstanceNormResidual(widths[-1]) for _ in range(residual_blocks))
        self.width = widths[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) in [-1, 1] to (B, width, H / 2^downs, W / 2^downs)."""
        x = F.relu(instance_norm(self.stem(images)))
        for down in self.downs:
            x = F.relu(instance_norm(down(x)))
        for residual in self.residuals:
            x = residual(x)
        return x


class ReferenceEncoder(nn.Module):
    """E_ref: image to style code. No normalisation, because it would remove the style."""

    def __init__(
        self, channels: int, base_filters: int, downs: int, style_size: int, stem_kernel: int, down_kernel: int
    ) -> None:
        super().__init__()
        self.stem = PaddedConv(channels, base_filters, stem_kernel)
        widths = [base_filters * 2 ** min(i, 2) for i in range(downs + 1)]
        self.downs = nn.ModuleList(DownConv(widths[i], widths[i + 1], down_kernel) for i in range(downs))
        self.to_style = nn.Conv2d(widths[-1], style_size, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) in [-1, 1] to style codes (B, style_size)."""
        x = F.relu(self.stem(images))
        for down in self.downs:
            x = F.relu(down(x))
        return self.to_style(x.mean((2, 3), keepdim=True)).flatten(1)


class Decoder(nn.Module):
    """F: content code and style code to image; style enters through AdaIN, as an argument."""

    def __init__(
        self,
        channels: int,
        width: int,
        ups: int,
        residual_blocks: int,
        style_size: int,
        mlp_width: int,
        mlp_layers: int,
        stem_kernel: int,
        up_kernel: int,
        upsampling: str,
        style_in_upsampling: bool,
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        sizes = [style_size] + [mlp_width] * (mlp_layers - 1)
        hidden = [layer for i in range(mlp_layers - 1) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        # Lengths of the style vectors: four of each residual block, two (or none) after each upsampling.
        up_styles = [2 * (width >> (i + 1)) for i in range(ups)] if style_in_upsampling else []
        self.style_sizes = [4 * width] * residual_blocks + up_styles
        self.mlp = nn.Sequential(*hidden, nn.Linear(mlp_width, sum(self.style_sizes)))
        self.residuals = nn.ModuleList(AdaptiveResidual(width) for _ in range(residual_blocks))
        self.ups = nn.ModuleList(PaddedConv(width >> i, width >> (i + 1), up_kernel) for i in range(ups))
        self.to_image = PaddedConv(width >> ups, channels, stem_kernel)

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map content (B, width, h, w) and style (B, style_size) to images (B, channels, H, W) in [-1, 1]."""
        x = content
        styles = self.mlp(style).split(self.style_sizes, dim=1)
        for residual, block_style in zip(self.residuals, styles, strict=False):
            x = residual(x, block_style)
        for up, up_style in itertools.zip_longest(self.ups, styles[len(self.residuals) :]):
            x = up(F.interpolate(x, scale_factor=2, mode=self.upsampling))
            x = F.relu(instance_norm(x) if up_style is None else adaptive_instance_norm(x, *up_style.chunk(2, dim=1)))
        return torch.tanh(self.to_image(x))


class Translator(nn.Module):
    """G(x, y) = F(E_source(x), E_ref(y)), paper equation 1; weights are drawn anew from He's distribution."""

    def __init__(
        self,
        source_encoder: SourceEncoder,
        reference_encoder: ReferenceEncoder,
        decoder: Decoder,
        class_codes: nn.Embedding | None = None,
    ) -> None:
        super().__init__()
        self.source_encoder, self.reference_encoder, self.decoder = source_encoder, reference_encoder, decoder
        self.class_codes = class_codes
        init_weights(self)

    def style(self, references: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return style codes (B, style_size) of references (B, channels, H, W) and their classes (B,) int64.

        With class codes, a learned code of the class is added, so that what the reference encoder sees need not tell
        the class.
        """
        codes = self.reference_encoder(references)
        return codes if self.class_codes is None else codes + self.class_codes(labels)

    def forward(self, source: torch.Tensor, reference: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Translate `source` into the style of `reference`, both (B, channels, H, W); `label` (B,) is the latter's."""
        return self.decoder(self.source_encoder(source), self.style(reference, label))


class Discriminator(nn.Module):
    """The trunk D_f with an adversarial head D_adv and, unless left out, a class head D_cls."""

    def __init__(
        self,
        n_classes: int,
        *,
        channels: int = 3,
        base_filters: int = 64,
        blocks: int = 10,
        max_filters: int = 1024,
        stem_kernel: int = 7,
        stem_stride: int = 1,
        classifier_head: bool = True,
    ) -> None:
        super().__init__()
        self.stem = PaddedConv(channels, base_filters, stem_kernel, stride=stem_stride)
        widths = [min(base_filters * 2**i, max_filters) for i in range(blocks // 2 + 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                ActivationFirstResidual(widths[i], widths[i]), ActivationFirstResidual(widths[i], widths[i + 1])
            )
            for i in range(blocks // 2)
        )
        self.adversarial_head = nn.Conv2d(widths[-1], n_classes, 1)
        self.class_head = nn.Conv2d(widths[-1], n_classes, 1) if classifier_head else None
        init_weights(self)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """D_f: map (B, channels, H, W) in [-1, 1] to (B, width, h, w)."""
        x = self.stem(images)
        for number, stage in enumerate(self.stages):
            x = stage(F.avg_pool2d(x, 2) if number else x)
        return x

    def adversarial(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """D_adv: the patch scores (B, h, w) of each image's own class; `labels` (B,) int64."""
        maps = self.adversarial_head(F.leaky_relu(features, 0.2))
        return maps[torch.arange(len(labels), device=labels.device), labels]

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """D_cls: logits (B, n_classes), the class maps averaged over patches."""
        if self.class_head is None:
            raise ValueError("this discriminator was built without a class head")
        return self.class_head(F.leaky_relu(features, 0.2)).mean((2, 3))
