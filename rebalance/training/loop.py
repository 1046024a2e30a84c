"""The one training loop. It owns devices, precision, optimisers, averaging, lazy penalties, logging and checkpoints."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rebalance.config import OptimizerOptions
from rebalance.errors import DivergedError, InterruptedRunError
from rebalance.trainable import Loss, StepContext, Trainable
from rebalance.training.checkpoints import CheckpointFolder, TrainerState
from rebalance.training.data import prefetched
from rebalance.training.ema import MovingAverage
from rebalance.training.logs import Observation, TrainingLog


@dataclass(frozen=True)
class LoopOptions:
    """What the loop must know, whatever it trains.

    Attributes:
        steps: steps in all.
        optimizer: optimiser; learning rates come with the phases.
        ema: decay of averaged networks.
        lr_decay: share of the steps, the last ones, over which learning rates fall linearly to 0.
        regularize_every_steps: interval of lazy penalties.
        precision: "fp32" or "bf16" autocast.
        memory_format: "contiguous" or "channels_last".
        log_every_steps: interval of scalars.
        preview_every_steps: interval of observations.
        checkpoint_every_steps: interval of checkpoints.
        seed: seed of everything random in a step.
    """

    steps: int
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema: float = 0.999
    lr_decay: float = 0.0
    regularize_every_steps: int = 1
    precision: str = "fp32"
    memory_format: str = "contiguous"
    log_every_steps: int = 20
    preview_every_steps: int = 1000
    checkpoint_every_steps: int = 500
    seed: int = 0


Observer = Callable[[Mapping[str, nn.Module]], Observation]
"""Looks at the averaged networks, given by name."""


def lr_factor(number: int, options: LoopOptions) -> float:
    """Return what learning rates are multiplied with at step `number` (from 0)."""
    decaying = options.lr_decay * options.steps
    left = options.steps - number
    return min(1.0, left / decaying) if decaying else 1.0


class Trainer:
    """A trainable with its optimisers and averages, on a device: everything that a step changes."""

    def __init__(self, trainable: Trainable, options: LoopOptions, device: torch.device) -> None:
        self.trainable, self.options, self.device = trainable, options, device
        self.memory_format = (
            torch.channels_last if options.memory_format == "channels_last" else torch.contiguous_format
        )
        for network in trainable.networks.values():
            network.to(device, memory_format=self.memory_format).train()
        self.optimizers = {phase.name: self._optimizer(phase.networks, phase.lr) for phase in trainable.phases}
        self.averages = {name: MovingAverage(trainable.networks[name], options.ema) for name in trainable.averaged}
        self.diverged = torch.zeros((), dtype=torch.bool, device=device)

    def _optimizer(self, names: tuple[str, ...], lr: float) -> torch.optim.Optimizer:
        options = self.options.optimizer
        parameters = [parameter for name in names for parameter in self.trainable.networks[name].parameters()]
        if options.name == "adam":
            betas = (options.beta1, options.beta2)
            return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=options.weight_decay)
        return torch.optim.RMSprop(parameters, lr=lr, alpha=options.beta2, weight_decay=options.weight_decay)

    def step(self, batch: Any, number: int) -> dict[str, Loss]:
        """Take training step `number` (from 0) on a batch and return the loss of every phase."""
        every = self.options.regularize_every_steps
        # Hashed, because torch's CPU generator uses 32 bits of its seed only.
        seed = int(np.random.SeedSequence((self.options.seed, number)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        # Counted from the end of the step, as logs are, so that logged steps can be among them.
        context = StepContext(number, generator, float(every) if (number + 1) % every == 0 else 0.0)
        batch = batch.to(self.device, self.memory_format)
        with self._autocast():
            outputs = self.trainable.forward(batch, context)
        losses = {}
        for phase in self.trainable.phases:
            with self._learning(phase.networks):
                # A context of its own: autocast's cached casts would outlive the phase's weights.
                with self._autocast():
                    loss = self.trainable.loss(phase.name, batch, outputs, context)
                self.optimizers[phase.name].zero_grad(set_to_none=True)
                loss.total.backward()
                self.optimizers[phase.name].param_groups[0]["lr"] = phase.lr * lr_factor(number, self.options)
                self.optimizers[phase.name].step()
            self.diverged |= ~loss.total.detach().isfinite()
            losses[phase.name] = loss
        for name, average in self.averages.items():
            average.update(self.trainable.networks[name], number)
        return losses

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    @contextlib.contextmanager
    def _learning(self, names: tuple[str, ...]) -> Iterator[None]:
        """Freeze every network but those named."""
        others = [network for name, network in self.trainable.networks.items() if name not in names]
        for network in others:
            network.requires_grad_(False)
        try:
            yield
        finally:
            for network in others:
                network.requires_grad_(True)

    def averaged_networks(self) -> dict[str, nn.Module]:
        """Return the averaged networks by name."""
        return {name: average.network for name, average in self.averages.items()}

    def check_finite(self, number: int, *, weights: bool) -> None:
        """Stop when a loss, or with `weights` a weight, is no longer finite.

        Raises:
            DivergedError: naming the step.
        """
        broken = bool(self.diverged)
        if weights and not broken:
            parameters = [p for network in self.trainable.networks.values() for p in network.parameters()]
            broken = not torch.stack(torch._foreach_norm(parameters)).isfinite().all()
        if broken:
            raise DivergedError(
                f"the loss or a weight was not finite at step {number}; the last checkpoint is intact",
                remedy="Start again with a lower learning rate, or with training.precision=fp32",
            )

    def state(self, step: int) -> TrainerState:
        """Return everything that must be saved after `step` steps."""
        return TrainerState(step, self.trainable.networks, self.averaged_networks(), self.optimizers)


class StopRequest:
    """Becomes true when SIGINT or SIGTERM arrives; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen to the signals while the context lasts (in the main thread; elsewhere do nothing)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(
    trainer: Trainer,
    batch_at: Callable[[int], Any],
    checkpoints: CheckpointFolder,
    log: TrainingLog,
    *,
    name: str,
    observer: Observer | None = None,
    progress: bool = False,
) -> None:
    """Train to the last step, resuming from the newest checkpoint.

    Args:
        trainer: what is trained.
        batch_at: maps a step to its batch, purely.
        checkpoints: where states go and come from.
        log: scalars and pictures; it is cut back to the checkpoint on resuming.
        name: what the progress bar calls it.
        observer: looks at the averaged networks now and then.
        progress: show a progress bar on stderr.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM; the state is saved.
        DivergedError: a value was not finite.
    """
    options = trainer.options
    first = checkpoints.restore(trainer.state(0), log)
    if first >= options.steps:
        return
    bar = tqdm(total=options.steps, initial=first, desc=name, unit="step", disable=not progress, dynamic_ncols=True)
    pin = trainer.device.type == "cuda"
    with bar, log, StopRequest().listening() as stop, prefetched(batch_at, first, options.steps, pin) as batches:
        for number, batch in enumerate(batches, first):
            losses = trainer.step(batch, number)
            done = number + 1
            last = done == options.steps
            if done % options.log_every_steps == 0 or last:
                trainer.check_finite(number, weights=False)
                bar.set_postfix(log.scalars(losses, done), refresh=False)
            if observer and (done % options.preview_every_steps == 0 or last):
                log.observation(observer(trainer.averaged_networks()), done)
            bar.update()
            if done % options.checkpoint_every_steps == 0 or last or stop.requested:
                trainer.check_finite(number, weights=True)
                checkpoints.save(trainer.state(done), log)
            if stop.requested:
                raise InterruptedRunError(
                    f"stopped at step {done}; saved", remedy="The same command, without --overwrite, resumes"
                )
