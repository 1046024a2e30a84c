"""The contract between the one training loop and everything that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rebalance.draws import Draws
from rebalance.ranks import Ranks


@dataclass(frozen=True)
class Phase:
    """One optimiser step within a training step.

    Attributes:
        name: for logs and checkpoints.
        networks: names of the networks that learn; all others are frozen meanwhile.
        lr: learning rate.
    """

    name: str
    networks: tuple[str, ...]
    lr: float


@dataclass(frozen=True)
class Loss:
    """What a phase minimises, and its parts for the log; all scalar tensors."""

    total: torch.Tensor
    terms: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StepContext:
    """What a loss may know of the step.

    Attributes:
        step: number of the step, from 0.
        draws: all random numbers, seeded by (seed, step).
        regularize: factor of lazily applied penalties: their interval on the steps that take them, 0 on the others.
        ranks: who shares the batch. The loop averages gradients over them, so a loss that is a mean over images needs
            nothing; one that divides by anything else does.
    """

    step: int
    draws: Draws
    regularize: float
    ranks: Ranks = Ranks()


class Trainable(ABC):
    """Networks and losses; it knows no device, no optimiser, no file."""

    networks: dict[str, nn.Module]
    """Everything that is trained and saved, by name."""

    averaged: tuple[str, ...] = ()
    """Names of networks of which the loop keeps an exponential moving average."""

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases of a step, in order."""

    @abstractmethod
    def forward(self, batch: Any, context: StepContext) -> Any:
        """Compute once what several phases of the step share, with gradients."""

    @abstractmethod
    def loss(self, phase: str, batch: Any, outputs: Any, context: StepContext) -> Loss:
        """Return the loss of a phase; `outputs` is what `forward` returned in this step."""
