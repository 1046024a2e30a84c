"""The one training loop. It owns devices, precision, optimisers, averaging, lazy penalties, logging and checkpoints.

Several processes share a batch and average their gradients themselves: torch's DistributedDataParallel hooks on one
forward pass of one module, and a step here has several networks, two phases and R1's gradient of a gradient.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rebalance.config import OptimizerOptions
from rebalance.errors import DivergedError, InterruptedRunError
from rebalance.learning.averages import MovingAverage
from rebalance.learning.batches import Batch, BatchAt, prefetched
from rebalance.learning.checkpoints import CheckpointFolder, TrainerState
from rebalance.learning.logs import Observation, TrainingLog
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable
from rebalance.runtime.draws import Draws
from rebalance.runtime.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """Options of the loop, whatever it trains.

    Attributes:
        steps: steps in all.
        optimizer: optimiser; learning rates come with the networks.
        ema: decay of averaged networks.
        lr_decay: share of the steps, the last ones, over which learning rates fall linearly to 0.
        regularize_every_steps: interval of lazy penalties.
        precision: "fp32" or "bf16" autocast.
        memory_format: "contiguous" or "channels_last".
        threads: CPU threads; 0 leaves them as they are.
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
    threads: int = 0
    log_every_steps: int = 20
    preview_every_steps: int = 1000
    checkpoint_every_steps: int = 500
    seed: int = 0


Observer = Callable[[Mapping[str, nn.Module]], Observation]
"""Measures the averaged networks, given by name."""


def lr_factor(number: int, options: LoopOptions) -> float:
    """Return what learning rates are multiplied with at step `number` (from 0)."""
    decaying = options.lr_decay * options.steps
    left = options.steps - number
    return min(1.0, left / decaying) if decaying else 1.0


def make_optimizer(network: nn.Module, choice: NetworkOptimizer, default: OptimizerOptions) -> torch.optim.Optimizer:
    """Return the optimiser of a network, with the loop's settings where the network has none of its own."""

    def setting(own: Any, general: Any) -> Any:
        return general if own is None else own

    parameters, decay = list(network.parameters()), setting(choice.weight_decay, default.weight_decay)
    beta2 = setting(choice.beta2, default.beta2)
    if setting(choice.name, default.name) == "adam":
        betas = (setting(choice.beta1, default.beta1), beta2)
        # One kernel for all weights: a third of the time of a loop over them. RMSprop has none.
        return torch.optim.Adam(parameters, lr=choice.lr, betas=betas, weight_decay=decay, fused=True)
    return torch.optim.RMSprop(parameters, lr=choice.lr, alpha=beta2, weight_decay=decay)


def _place(network: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    # torch's stubs know no overload with a memory format alone.
    return network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


class Trainer:
    """A trainable with its optimisers and averages, on a device: everything that a step changes.

    With several ranks each of them steps on its share of the batch, and all keep the same weights.
    """

    def __init__(
        self, trainable: Trainable, options: LoopOptions, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.trainable, self.options, self.device, self.ranks = trainable, options, device, ranks or Ranks()
        self.memory_format = (
            torch.channels_last if options.memory_format == "channels_last" else torch.contiguous_format
        )
        for network in trainable.networks.values():
            _place(network, device, self.memory_format).train()
        for network in trainable.frozen.values():
            _place(network, device, self.memory_format).eval().requires_grad_(False)
        self.optimizers = {
            name: make_optimizer(trainable.networks[name], choice, options.optimizer)
            for name, choice in trainable.optimizers.items()
        }
        self.averages = {name: MovingAverage(trainable.networks[name], options.ema) for name in trainable.averaged}
        self.diverged = torch.zeros((), dtype=torch.bool, device=device)

    def step(self, batch: Batch, number: int) -> dict[str, Loss]:
        """Take training step `number` (from 0) on this process's share of a batch.

        Returns the loss of every phase; of a phase that is repeated, that of its last repetition.
        """
        # Hashed, because torch's CPU generator uses 32 bits of its seed only.
        seed = int(np.random.SeedSequence((self.options.seed, number)).generate_state(1)[0])
        draws = Draws(seed, self.ranks, len(batch))
        context = StepContext(
            number, draws, self._regularize(number, Phase("", ()), 0), self.ranks, steps=self.options.steps
        )
        batch = batch.to(self.device, self.memory_format)
        with self._autocast():
            outputs = self.trainable.forward(batch, context)
        losses = {}
        for phase in self.trainable.phases:
            for repeat in range(phase.repeats):
                regularize = self._regularize(number, phase, repeat)
                own_context = replace(context, regularize=regularize, repeat=repeat)
                losses[phase.name] = self._take_phase(phase, batch, outputs, own_context)
        for name, average in self.averages.items():
            average.update(self.trainable.networks[name], number)
        return losses

    def _regularize(self, number: int, phase: Phase, repeat: int) -> float:
        """Return the factor of lazy penalties: of all repetitions of a phase, every so-manieth takes them."""
        every = self.options.regularize_every_steps
        # Counted from the end of the step, as logs are, so that logged steps can be among them.
        return float(every) if (number * phase.repeats + repeat + 1) % every == 0 else 0.0

    def _take_phase(self, phase: Phase, batch: Batch, outputs: Any, context: StepContext) -> Loss:
        """Compute the loss of a phase and step its networks' optimisers."""
        with self._learning(phase.networks):
            # A context of its own: autocast's cached casts would outlive the phase's weights.
            with self._autocast():
                loss = self.trainable.loss(phase.name, batch, outputs, context)
            for name in phase.networks:
                self.optimizers[name].zero_grad(set_to_none=True)
            loss.total.backward()
            self.ranks.average(self._gradients(phase.networks))
            for name in phase.networks:
                optimizer, lr = self.optimizers[name], self.trainable.optimizers[name].lr
                optimizer.param_groups[0]["lr"] = lr * lr_factor(context.step, self.options)
                optimizer.step()
        self.diverged |= ~loss.total.detach().isfinite()
        return loss

    def _gradients(self, names: tuple[str, ...]) -> list[torch.Tensor]:
        parameters = (p for name in names for p in self.trainable.networks[name].parameters())
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

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

    def mean_losses(self, losses: Mapping[str, Loss]) -> dict[str, Loss]:
        """Return losses as the whole batch has them, detached, and remember what diverged anywhere."""
        values = {name: (loss.total, *loss.terms.values()) for name, loss in losses.items()}
        flat = torch.stack([value.detach().float() for of_phase in values.values() for value in of_phase])
        self.ranks.average([flat])
        self.diverged |= ~flat.isfinite().all()
        parts = dict(zip(values, flat.split([len(of_phase) for of_phase in values.values()]), strict=True))
        return {
            name: Loss(parts[name][0], dict(zip(loss.terms, parts[name][1:], strict=True)))
            for name, loss in losses.items()
        }

    def averaged_networks(self) -> dict[str, nn.Module]:
        """Return the averaged networks by name."""
        return {name: average.network for name, average in self.averages.items()}

    def check_finite(self, number: int, *, weights: bool) -> None:
        """Stop when a loss, or with `weights` a weight, is no longer finite.

        Raises:
            DivergedError: naming the step.
        """
        broken = self.ranks.any(bool(self.diverged))
        if weights and not broken:
            networks = self.trainable.networks.values()
            parameters: list[torch.Tensor] = [p for network in networks for p in network.parameters()]
            broken = not torch.stack(torch._foreach_norm(parameters)).isfinite().all()
        if broken:
            raise DivergedError(
                f"the loss or a weight was not finite at step {number}; the last checkpoint is intact",
                remedy="Start again with a lower learning rate, or with training.precision=fp32",
            )

    def state(self, step: int) -> TrainerState:
        """Return everything that must be saved after `step` steps."""
        frozen = {name: self.trainable.frozen[name] for name in self.trainable.saved_frozen}
        return TrainerState(step, self.trainable.networks, self.averaged_networks(), self.optimizers, frozen)


class _Waiting:
    """Passes batches on and adds up the seconds for which they were waited for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds, self.since = batches, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Any]:
        while True:
            asked = time.perf_counter()
            try:
                batch = next(self.batches)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - asked
            yield batch

    @property
    def share(self) -> float:
        """Share of the time until now."""
        return self.seconds / (time.perf_counter() - self.since)


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
    batch_at: BatchAt,
    checkpoints: CheckpointFolder,
    log: TrainingLog,
    *,
    name: str,
    observer: Observer | None = None,
    progress: bool = False,
) -> None:
    """Train to the last step, resuming from the newest checkpoint. The first of several processes writes.

    Args:
        trainer: what is trained.
        batch_at: maps a step to this process's share of its batch, purely.
        checkpoints: where states go and come from.
        log: scalars and pictures; it is cut back to the checkpoint on resuming.
        name: what the progress bar calls it.
        observer: measures the averaged networks at the preview interval.
        progress: show a progress bar on stderr.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM; the state is saved.
        DivergedError: a value was not finite.
    """
    options, ranks = trainer.options, trainer.ranks
    first = ranks.first_does(lambda: checkpoints.restore(trainer.state(0), log))
    if first is None:
        first = checkpoints.follow(trainer.state(0))
    if first >= options.steps:
        return
    bar = tqdm(total=options.steps, initial=first, desc=name, unit="step", disable=not progress, dynamic_ncols=True)
    pin = trainer.device.type == "cuda"
    writing = log if ranks.first else contextlib.nullcontext()
    with bar, writing, StopRequest().listening() as stop, prefetched(batch_at, first, options.steps, pin) as batches:
        waiting = _Waiting(batches)
        for number, batch in enumerate(waiting, first):
            losses = trainer.step(batch, number)
            done = number + 1
            last, stopping = done == options.steps, ranks.any(stop.requested)
            if done % options.log_every_steps == 0 or last:
                losses = trainer.mean_losses(losses)
                trainer.check_finite(number, weights=False)
                if ranks.first:
                    bar.set_postfix(log.scalars(losses, done), refresh=False)
            if ranks.first and observer and (done % options.preview_every_steps == 0 or last):
                log.observation(observer(trainer.averaged_networks()), done)
            bar.update()
            if done % options.checkpoint_every_steps == 0 or last or stopping:
                trainer.check_finite(number, weights=True)
                ranks.first_does(functools.partial(checkpoints.save, trainer.state(done), log))
            if stopping:
                raise InterruptedRunError(
                    f"stopped at step {done}; saved", remedy="The same call, without `overwrite=True`, resumes"
                )
        logger.info("%s: %.2f%% of the time was spent waiting for images", name, 100 * waiting.share)
