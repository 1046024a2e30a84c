"""Choice of threads, precision and layout, made once by timing this network on this machine."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.learning.trainable import Trainable
from rebalance.runtime.devices import cpu_count

# Odd, so that the median is a measured ratio.
_ROUNDS = 5
# A challenger that saves less than this share of the time may have been lucky.
_CLEARLY_FASTER = 0.95
# Ratios from which no layout makes up for a precision: after two timed steps, and after one.
_TOO_SLOW, _TOO_SLOW_AT_ONCE = 4.0, 10.0
# bf16 rounds the first loss by a few percent; more means that it computes something else.
_LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Comparison:
    """Two ways to compute, steps taken in turns.

    Attributes:
        incumbent: the faster until now.
        challenger: the other.
        ratio: median over rounds of the challenger's time over the incumbent's, over the first where that is too slow.
        agrees: whether the challenger's first loss lies within 10% of the incumbent's.
    """

    incumbent: LoopOptions
    challenger: LoopOptions
    ratio: float
    agrees: bool

    @property
    def winner(self) -> LoopOptions:
        """Return the challenger if its loss agrees and it is clearly faster."""
        return self.challenger if self.agrees and self.ratio < _CLEARLY_FASTER else self.incumbent

    @property
    def too_slow(self) -> bool:
        """Return whether the challenger's precision is so slow, as without hardware, that no layout makes up for it."""
        old, new = self.incumbent, self.challenger
        return new.precision != old.precision and new.memory_format == old.memory_format and self.ratio > _TOO_SLOW

    def __str__(self) -> str:
        challenger, incumbent = map(described, (self.challenger, self.incumbent))
        wrong = "" if self.agrees else ", but with another loss"
        return f"{challenger} takes {self.ratio:.2f} of the time of {incumbent}{wrong}"


def described(options: LoopOptions) -> str:
    """Return precision, layout and threads in words."""
    threads = f", {options.threads} thread{'s' if options.threads > 1 else ''}" if options.threads else ""
    return f"{options.precision} {options.memory_format}{threads}"


def choose(
    trainable: Trainable, options: LoopOptions, device: torch.device, batch: Any
) -> tuple[LoopOptions, list[Comparison]]:
    """Replace "auto" in precision and memory format, and 0 threads on a CPU, by what is fastest here.

    Threads are one or all: a small network's step waits for the slowest thread in every parallel region, so where other
    work keeps a core busy, one thread can be several times faster than two.

    Candidates are timed in pairs, step by step in turns, and compared by the median of their ratios, because the speed
    of a shared machine drifts. A precision that is several times slower in one layout is not tried in the other. Steps
    are taken on copies, so the weights stay as they are.

    Args:
        trainable: what will be trained.
        options: its loop options.
        device: where.
        batch: a batch of the real size.

    Returns:
        The options without "auto", and the comparisons (none when nothing was left to choose).
    """
    before = torch.get_num_threads()
    try:
        return _choose(trainable, options, device, batch)
    finally:
        torch.set_num_threads(before)


def _choose(
    trainable: Trainable, options: LoopOptions, device: torch.device, batch: Any
) -> tuple[LoopOptions, list[Comparison]]:
    free = options.threads == 0 and device.type == "cpu"
    threads = tuple(dict.fromkeys((cpu_count(), 1))) if free else (options.threads,)
    precisions = ("fp32", "bf16") if options.precision == "auto" else (options.precision,)
    formats = ("contiguous", "channels_last") if options.memory_format == "auto" else (options.memory_format,)
    incumbent = replace(options, threads=threads[0], precision=precisions[0], memory_format=formats[0])
    comparisons: list[Comparison] = []
    changes: list[dict[str, Any]] = [{"threads": number} for number in threads[1:]]
    changes += [{"memory_format": layout} for layout in formats[1:]]

    def faster(incumbent: LoopOptions, **change: Any) -> LoopOptions:
        comparisons.append(_compare(trainable, incumbent, replace(incumbent, **change), device, batch))
        return comparisons[-1].winner

    for change in changes:
        incumbent = faster(incumbent, **change)
    for precision in precisions[1:]:
        for layout in sorted(formats, key=lambda name: name != incumbent.memory_format):
            if not any(
                comparison.too_slow and comparison.challenger.precision == precision for comparison in comparisons
            ):
                incumbent = faster(incumbent, precision=precision, memory_format=layout)
    return incumbent, comparisons


def _compare(
    trainable: Trainable, incumbent: LoopOptions, challenger: LoopOptions, device: torch.device, batch: Any
) -> Comparison:
    trainers = [Trainer(copy.deepcopy(trainable), options, device) for options in (incumbent, challenger)]
    (_, expected), (_, loss) = (_step(trainer, batch, 0) for trainer in trainers)
    agrees = abs(loss - expected) <= _LOSS_TOLERANCE * max(abs(expected), 1e-3)
    ratios: list[float] = []
    for number in range(1, _ROUNDS + 1):
        (old, _), (new, _) = (_step(trainer, batch, number) for trainer in trainers)
        ratios.append(new / old)
        if min(ratios) > (_TOO_SLOW if number > 1 else _TOO_SLOW_AT_ONCE):
            break
    return Comparison(incumbent, challenger, statistics.median(ratios), agrees)


def _step(trainer: Trainer, batch: Any, number: int) -> tuple[float, float]:
    """Take a step; return its seconds and its summed loss."""
    if trainer.options.threads:
        torch.set_num_threads(trainer.options.threads)
    start = time.perf_counter()
    losses = trainer.step(batch, number)
    loss = sum(float(loss.total.detach()) for loss in losses.values())  # waits for the device
    return time.perf_counter() - start, loss
