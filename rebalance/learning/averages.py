"""Exponential moving averages of networks."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A shadow copy of a network whose weights follow it slowly; buffers are copied.

    The decay rises from 0 as (1 + t) / (10 + t), so that the first weights are forgotten early.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        shadows, live = dict(self.network.named_parameters()), dict(network.named_parameters())
        if shadows.keys() != live.keys():
            raise ValueError("the averaged network has other parameters than the trained one")
        torch._foreach_lerp_([shadows[name] for name in live], list(live.values()), 1 - decay)
        for name, buffer in network.named_buffers():
            self.network.get_buffer(name).copy_(buffer)
