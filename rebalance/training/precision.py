"""Precision and layout, chosen once by timing this network on this machine."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rebalance.trainable import Trainable
from rebalance.training.loop import LoopOptions, Trainer

_ROUNDS = 5
_CLEARLY_FASTER = 0.95
_HOPELESS = 4.0
_LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Duel:
    """Two precisions and layouts, steps taken in turns.

    Attributes:
        champion: the faster until now.
        challenger: the other.
        ratio: median over rounds of the challenger's time over the champion's.
        agrees: whether the challenger's first loss lies within 10% of the champion's.
    """

    champion: LoopOptions
    challenger: LoopOptions
    ratio: float
    agrees: bool

    @property
    def winner(self) -> LoopOptions:
        """The challenger if it is right and clearly faster."""
        return self.challenger if self.agrees and self.ratio < _CLEARLY_FASTER else self.champion

    def __str__(self) -> str:
        challenger, champion = (f"{o.precision} {o.memory_format}" for o in (self.challenger, self.champion))
        wrong = "" if self.agrees else ", but with another loss"
        return f"{challenger} takes {self.ratio:.2f} of the time of {champion}{wrong}"


def choose(
    trainable: Trainable, options: LoopOptions, device: torch.device, batch: Any
) -> tuple[LoopOptions, list[Duel]]:
    """Replace "auto" in precision and memory format by what is fastest here.

    Candidates are timed in pairs, step by step in turns, and compared by the median of their ratios, because the speed
    of a shared machine drifts. Steps are taken on copies, so the weights stay as they are.

    Args:
        trainable: what will be trained.
        options: its loop options.
        device: where.
        batch: a batch of the real size.

    Returns:
        The options without "auto", and the comparisons (none when nothing was left to choose).
    """
    precisions = ("fp32", "bf16") if options.precision == "auto" else (options.precision,)
    formats = ("contiguous", "channels_last") if options.memory_format == "auto" else (options.memory_format,)
    candidates = [replace(options, precision=p, memory_format=f) for p in precisions for f in formats]
    champion, duels = candidates[0], []
    for challenger in candidates[1:]:
        duels.append(_duel(trainable, champion, challenger, device, batch))
        champion = duels[-1].winner
    return champion, duels


def _duel(
    trainable: Trainable, champion: LoopOptions, challenger: LoopOptions, device: torch.device, batch: Any
) -> Duel:
    trainers = [Trainer(copy.deepcopy(trainable), options, device) for options in (champion, challenger)]
    (_, expected), (_, found) = (_step(trainer, batch, 0) for trainer in trainers)
    agrees = abs(found - expected) <= _LOSS_TOLERANCE * max(abs(expected), 1e-3)
    ratios: list[float] = []
    for number in range(1, _ROUNDS + 1):
        (old, _), (new, _) = (_step(trainer, batch, number) for trainer in trainers)
        ratios.append(new / old)
        if number > 1 and min(ratios) > _HOPELESS:
            break
    return Duel(champion, challenger, statistics.median(ratios), agrees)


def _step(trainer: Trainer, batch: Any, number: int) -> tuple[float, float]:
    """Take a step; return its seconds and its summed loss."""
    start = time.perf_counter()
    losses = trainer.step(batch, number)
    loss = sum(float(loss.total.detach()) for loss in losses.values())  # waits for the device
    return time.perf_counter() - start, loss
