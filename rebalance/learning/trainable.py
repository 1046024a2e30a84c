"""The contract between the one training loop and everything that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rebalance.runtime.draws import Draws
from rebalance.runtime.ranks import Ranks


@dataclass(frozen=True)
class NetworkOptimizer:
    """Optimiser of one network; a setting that is None is the loop's.

    Attributes:
        lr: learning rate.
        name: "adam" or "rmsprop".
        beta1: Adam's first momentum.
        beta2: Adam's second momentum, and RMSprop's smoothing.
        weight_decay: L2 penalty.
    """

    lr: float
    name: str | None = None
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Phase:
    """A loss and the networks that it trains, within a training step.

    Attributes:
        name: for logs.
        networks: names of the networks that learn; all others are frozen meanwhile.
        repeats: how often it is taken in a step, as a critic's before one step of its generator. Each repetition has
            rows of its own of the batch, or draws of its own; the loss finds its number in `StepContext.repeat`.
    """

    name: str
    networks: tuple[str, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Loss:
    """Value that a phase minimises.

    Attributes:
        total: scalar.
        terms: its parts for the log, scalars.
        translations: (B, C, H, W) with gradient, row i made of the batch's source i, for wrappers that add a term on
            them; None where the phase made none.
    """

    total: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    translations: torch.Tensor | None = None


@dataclass(frozen=True)
class StepContext:
    """State of the step, for losses.

    Attributes:
        step: number of the step, from 0.
        draws: all random numbers, seeded by (seed, step).
        regularize: factor of lazily applied penalties: their interval where a phase takes them, 0 elsewhere.
        ranks: who shares the batch. The loop averages gradients over them, so a loss that is a mean over images needs
            nothing; one that divides by anything else does.
        steps: steps in all.
        repeat: number of the phase's repetition, from 0.
    """

    step: int
    draws: Draws
    regularize: float
    ranks: Ranks = Ranks()
    steps: int = 1
    repeat: int = 0


class Trainable(ABC):
    """Networks and losses; it knows no device, no optimiser, no file."""

    networks: dict[str, nn.Module]
    """Everything that is trained and saved, by name."""

    frozen: Mapping[str, nn.Module] = {}
    """Networks that losses ask and nothing trains, by other names: on the device, in evaluation mode, not averaged."""

    saved_frozen: tuple[str, ...] = ()
    """Names of frozen networks that checkpoints hold, because what is made later needs them."""

    averaged: tuple[str, ...] = ()
    """Names of networks of which the loop keeps an exponential moving average."""

    @property
    @abstractmethod
    def optimizers(self) -> Mapping[str, NetworkOptimizer]:
        """Return the optimiser of each network; phases over one network share it."""

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a step, in order."""

    def forward(self, batch: Any, context: StepContext) -> Any:
        """Compute once what several phases of the step share, with gradients; nothing by default.

        A phase changes its networks in place. So a later phase must not differentiate through what an earlier one has
        changed: it computes that again.
        """
        return None

    @abstractmethod
    def loss(self, phase: str, batch: Any, outputs: Any, context: StepContext) -> Loss:
        """Return the loss of a phase; `outputs` is what `forward` returned in this step."""
