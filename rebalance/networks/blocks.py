"""Building blocks of the translators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def instance_norm(x: torch.Tensor) -> torch.Tensor:
    """Normalise each channel of each image, (B, C, H, W), to mean 0 and variance 1.

    One group a channel makes group normalisation instance normalisation; unlike the latter, its CPU kernel keeps the
    channels-last layout.
    """
    return F.group_norm(x, x.shape[1])


def adaptive_instance_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """AdaIN (Huang and Belongie, 2017): instance norm, then times (1 + scale) plus shift, both (B, C)."""
    return torch.addcmul(shift[:, :, None, None], instance_norm(x), 1 + scale[:, :, None, None])


def padded(x: torch.Tensor, pad: int) -> torch.Tensor:
    """Reflect (B, C, H, W) at its border, or repeat the border where the image is too small for that."""
    if pad == 0:
        return x
    mode = "reflect" if pad < min(x.shape[-2:]) else "replicate"
    # On CPUs autocast would convert to fp32 and back, to move values about: a tenth of a step's time.
    with torch.autocast("cpu", enabled=False):
        return F.pad(x, (pad, pad, pad, pad), mode=mode)


class PaddedConv(nn.Conv2d):
    """Convolution of an odd kernel, reflecting at the border where the image allows it; stride 1 keeps the size."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W) to (B, C', H / stride, W / stride)."""
        return super().forward(padded(x, self.kernel_size[0] // 2))


class DownConv(nn.Conv2d):
    """Convolution of an even kernel that halves height and width."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W) to (B, C', H / 2, W / 2)."""
        return super().forward(padded(x, (self.kernel_size[0] - 2) // 2))


class InstanceNormResidual(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))) with 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PaddedConv(channels, channels, 3)
        self.conv2 = PaddedConv(channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to the same shape."""
        hidden = F.relu(instance_norm(self.conv1(x)))
        return x + instance_norm(self.conv2(hidden))


class AdaptiveResidual(nn.Module):
    """The same block with AdaIN; it takes four style vectors of length C: scale and shift, twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PaddedConv(channels, channels, 3)
        self.conv2 = PaddedConv(channels, channels, 3)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to the same shape; `style` is (B, 4 C)."""
        scale1, shift1, scale2, shift2 = style.chunk(4, dim=1)
        hidden = F.relu(adaptive_instance_norm(self.conv1(x), scale1, shift1))
        return x + adaptive_instance_norm(self.conv2(hidden), scale2, shift2)


class ActivationFirstResidual(nn.Module):
    """shortcut(x) + conv(lrelu(conv(lrelu(x)))), leaky ReLU 0.2; 1x1 shortcut where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        hidden = min(channels_in, channels_out)
        self.conv1 = PaddedConv(channels_in, hidden, 3)
        self.conv2 = PaddedConv(hidden, channels_out, 3)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else PaddedConv(channels_in, channels_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        hidden = self.conv1(F.leaky_relu(x, 0.2))
        return self.shortcut(x) + self.conv2(F.leaky_relu(hidden, 0.2))


def init_weights(network: nn.Module) -> None:
    """Draw every convolution and linear layer from He's normal distribution, biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
