"""A forecast of time and disk before anything is trained: counted operations over measured speed."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rebalance import images
from rebalance.config import Recipe
from rebalance.draws import Draws
from rebalance.index import ImageIndex
from rebalance.methods import Method, PairBatch, make_method
from rebalance.modalities import Modalities, Modality
from rebalance.planning import Estimate, Plan
from rebalance.trainable import StepContext
from rebalance.training.run import units_of

_SHARE_OF_CONVOLUTION_SPEED = 0.5
_TAR_OVERHEAD_BYTES = 3 * 1024 + 512
_SAMPLED_IMAGES = 16


def estimate(index: ImageIndex, recipe: Recipe, plan: Plan, device: torch.device) -> Estimate:
    """Forecast the cost of a plan on this machine; right within a factor of about two.

    Training operations are counted on tensors without memory and divided by half the speed of a convolution of the
    network's own width, measured here. The encoder and start-up are left out.
    """
    speed = _convolution_speed(recipe, device) * _SHARE_OF_CONVOLUTION_SPEED
    fit_flops = generate_flops = run_bytes = 0.0
    table = tuple(Modality(name, number) for name, k in plan.modalities.items() for number in range(k))
    modalities = Modalities(table, np.zeros(0, np.int64), np.zeros(0, np.int64))
    for unit in units_of(plan, index, recipe):
        method = make_method(recipe, len(unit.labels(modalities)), seed=recipe.seed)
        n_bytes = sum(p.nbytes for network in method.networks.values() for p in network.parameters())
        averaged = sum(p.nbytes for name in method.averaged for p in method.networks[name].parameters())
        run_bytes += 2 * (2 * n_bytes + averaged)
        step, image = _count(copy.deepcopy(method), recipe)
        fit_flops += step * recipe.training.steps
        generate_flops += image * sum(plan.target(name).n_synthetic for name in unit.targets)
    return Estimate(
        fit_seconds=fit_flops / speed,
        generate_seconds=generate_flops / speed,
        run_bytes=int(run_bytes),
        shards_bytes=int(plan.n_synthetic * (_mean_image_bytes(index, recipe, plan) + _TAR_OVERHEAD_BYTES)),
    )


class _OperationCounter(TorchDispatchMode):
    """Sums torch's own operation counts; `FlopCounterMode` cannot be used, its hooks fail inside R1's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _count(method: Method, recipe: Recipe) -> tuple[float, float]:
    """Return the operations of a training step, averaged over lazy steps, and of one synthetic image."""
    for network in method.networks.values():
        network.to("meta")
    size, batch = recipe.data.size_px, recipe.training.batch
    pictures = torch.empty(batch, recipe.data.channels, size, size, device="meta")
    labels = torch.zeros(batch, dtype=torch.int64, device="meta")
    pair = PairBatch(pictures, labels, pictures, labels)
    every = recipe.training.regularize_every_steps
    totals = []
    for regularize in (0.0, float(every)):
        with _OperationCounter() as counter:
            context = StepContext(0, Draws(0), regularize)
            outputs = method.forward(pair, context)
            for phase in method.phases:
                method.loss(phase.name, pair, outputs, context).total.backward()
        totals.append(counter.total)
    with _OperationCounter() as counter, torch.no_grad():
        method.synthesize(pictures, method.reference_codes(pictures, labels))
    plain, regularized = totals
    return plain + (regularized - plain) / every, counter.total / batch


def _convolution_speed(recipe: Recipe, device: torch.device) -> float:
    """Operations a second of a 3x3 convolution with the shapes of the discriminator's second stage."""
    width, side = recipe.balagan.discriminator.base_filters * 2, max(recipe.data.size_px // 2, 4)
    conv = torch.nn.Conv2d(width, width, 3, padding=1, device=device)
    pictures = torch.randn(min(recipe.training.batch, 8), width, side, side, device=device)
    flops = 2 * 9 * width * width * side * side * len(pictures)
    best = float("inf")
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            conv(pictures)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return flops / best


def _mean_image_bytes(index: ImageIndex, recipe: Recipe, plan: Plan) -> float:
    rows = index.rows("train", plan.targets[0].name)[:_SAMPLED_IMAGES]
    return float(np.mean([len(images.encode(index.square(int(row), recipe.data), "jpg", 95)) for row in rows]))


def with_estimate(index: ImageIndex, recipe: Recipe, plan: Plan, device: torch.device) -> Plan:
    """Return the plan with its forecast."""
    return replace(plan, estimate=estimate(index, recipe, plan, device))
