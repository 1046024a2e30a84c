"""Precision and layout, chosen once by timing this network on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rebalance.trainable import Trainable
from rebalance.training.loop import LoopOptions, Trainer

_WARM_STEPS, _TIMED_STEPS = 1, 3
_LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Timing:
    """Seconds a step in one precision and layout."""

    precision: str
    memory_format: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format} {self.seconds * 1000:.0f} ms"


def choose(
    trainable: Trainable, options: LoopOptions, device: torch.device, batch: Any
) -> tuple[LoopOptions, list[Timing]]:
    """Replace "auto" in precision and memory format by what is fastest here.

    Steps are taken on copies, so the weights stay as they are. bf16 counts only when its first losses lie within 10%
    of those in fp32.

    Args:
        trainable: what will be trained.
        options: its loop options.
        device: where.
        batch: a batch of the real size.

    Returns:
        The options without "auto", and what was timed (empty when nothing was left to choose).
    """
    precisions = ("fp32", "bf16") if options.precision == "auto" else (options.precision,)
    formats = ("contiguous", "channels_last") if options.memory_format == "auto" else (options.memory_format,)
    if len(precisions) == len(formats) == 1:
        return options, []
    timings, expected, best = [], None, None
    for precision in precisions:
        for memory_format in formats:
            candidate = replace(options, precision=precision, memory_format=memory_format)
            limit = best.seconds * 2 if best else float("inf")
            seconds, loss = _time(trainable, candidate, device, batch, limit)
            expected = loss if expected is None else expected
            timing = Timing(precision, memory_format, seconds)
            timings.append(timing)
            close = abs(loss - expected) <= _LOSS_TOLERANCE * max(abs(expected), 1e-3)
            if close and (best is None or seconds < best.seconds):
                best = timing
    best = best or timings[0]
    return replace(options, precision=best.precision, memory_format=best.memory_format), timings


def _time(
    trainable: Trainable, options: LoopOptions, device: torch.device, batch: Any, limit: float
) -> tuple[float, float]:
    """Return the fastest step in seconds and the summed loss of the first; give up early on a slow candidate."""
    trainer = Trainer(copy.deepcopy(trainable), options, device)
    seconds, first = [], 0.0
    for number in range(_WARM_STEPS + _TIMED_STEPS):
        start = time.perf_counter()
        losses = trainer.step(batch, number)
        if not number:
            first = sum(float(loss.total.detach()) for loss in losses.values())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - start
        if number >= _WARM_STEPS or elapsed > 4 * limit:
            seconds.append(elapsed)
        if elapsed > 4 * limit:
            break
    return min(seconds), first
