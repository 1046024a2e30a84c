"""A forecast of time and disk before anything is trained: counted operations over measured speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rebalance import imaging
from rebalance.config import Recipe, TrainingOptions
from rebalance.index import ImageIndex
from rebalance.learning.sampling import StageTrainable
from rebalance.learning.trainable import StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.modalities import Modalities, Modality
from rebalance.planning.plans import Estimate, Plan
from rebalance.runtime.draws import Draws
from rebalance.runtime.ranks import Ranks
from rebalance.training.examples import example_pools
from rebalance.training.stages import stages_of

# A step is half convolutions at their own speed, half what moves memory: measured with both CPU recipes.
_SHARE_OF_CONVOLUTION_SPEED = 0.5
_TAR_OVERHEAD_BYTES = 3 * 1024 + 512
_SAMPLED_IMAGES = 16


def estimate(index: ImageIndex, recipe: Recipe, plan: Plan, device: torch.device) -> Estimate:
    """Forecast the cost of a plan on this machine; right within a factor of about two.

    Operations of a training step are counted on tensors without memory. They are divided by half the speed of the
    heaviest convolution among them, measured here. The encoder and start-up are left out.
    """
    fit_seconds = generate_seconds = run_bytes = 0.0
    table = tuple(Modality(name, number) for name, k in plan.modalities.items() for number in range(k))
    modalities = Modalities(table, np.zeros(0, np.int64), np.zeros(0, np.int64))
    for stage in stages_of(plan, index, recipe):
        labels = stage.unit.labels(modalities)
        trainable = recipe.options.build(BuildContext(recipe, stage.plan.name, labels, recipe.seed))
        n_bytes = sum(p.nbytes for network in trainable.networks.values() for p in network.parameters())
        copied = [trainable.networks[name] for name in trainable.averaged]
        copied += [trainable.frozen[name] for name in trainable.saved_frozen]
        n_copied_bytes = sum(p.nbytes for network in copied for p in network.parameters())
        run_bytes += 2 * (2 * n_bytes + n_copied_bytes)  # two checkpoints, each with an optimiser's moments
        counted = _count(trainable, recipe, stage.training, max(len(labels), 1))
        speed = _convolution_speed(counted.heaviest, device) * _SHARE_OF_CONVOLUTION_SPEED
        fit_seconds += counted.step * stage.training.steps / speed
        generate_seconds += counted.image * sum(plan.target(name).n_synthetic for name in stage.unit.targets) / speed
    return Estimate(
        fit_seconds=fit_seconds,
        generate_seconds=generate_seconds,
        run_bytes=int(run_bytes),
        shards_bytes=int(plan.n_synthetic * (_mean_image_bytes(index, recipe, plan) + _TAR_OVERHEAD_BYTES)),
    )


@dataclass(frozen=True)
class _Convolution:
    """Shapes of a convolution, and its operations.

    Attributes:
        images: (B, C, H, W).
        weight: (C', C / groups, kernel, kernel).
        stride: in pixels.
        padding: in pixels.
        flops: operations of a forward pass.
    """

    images: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    flops: float


# A 3x3 convolution for networks that have none, such as those of linear layers.
_USUAL_CONVOLUTION = _Convolution((8, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1), 2.0 * 9 * 64 * 64 * 32 * 32 * 8)


@dataclass(frozen=True)
class _Counted:
    """Operations of a training step, averaged over lazy steps, and of one image; and the heaviest convolution."""

    step: float
    image: float
    heaviest: _Convolution


class _OperationCounter(TorchDispatchMode):
    """Sums torch's own operation counts; `FlopCounterMode` cannot be used, its hooks fail inside R1's gradient."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0
        self.heaviest: _Convolution | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = float(formula(*args, **(kwargs or {}), out_val=result))
            self.total += flops
            if func._overloadpacket is torch.ops.aten.convolution and not args[6]:  # not a transposed one
                images, weight, _, stride, padding = args[:5]
                if self.heaviest is None or flops > self.heaviest.flops:
                    shapes = (tuple(images.shape), tuple(weight.shape))
                    self.heaviest = _Convolution(*shapes, tuple(stride), tuple(padding), flops)
        return result


def _count(trainable: StageTrainable, recipe: Recipe, training: TrainingOptions, n_classes: int) -> _Counted:
    """Count the operations of a stage on networks that are moved to the meta device."""
    meta = torch.device("meta")
    for network in (*trainable.networks.values(), *trainable.frozen.values()):
        network.to(meta)
    batch = trainable.sampler(example_pools(recipe, n_classes), training, recipe.seed, Ranks())(0)
    every, totals = training.regularize_every_steps, []
    heaviest: _Convolution | None = None
    for regularize in (0.0, float(every)):
        with _OperationCounter() as counter:
            context = StepContext(0, Draws(0, rows=len(batch)), regularize, steps=training.steps)
            on_meta = batch.to(meta, torch.contiguous_format)
            outputs = trainable.forward(on_meta, context)
            for phase in trainable.phases:
                for repeat in range(phase.repeats):
                    own = replace(context, repeat=repeat)
                    trainable.loss(phase.name, on_meta, outputs, own).total.backward()
        totals.append(counter.total)
        heaviest = counter.heaviest
    plain, regularized = totals
    image = _count_image(trainable, recipe) if isinstance(trainable, Method) else 0.0
    return _Counted(plain + (regularized - plain) / every, image, heaviest or _USUAL_CONVOLUTION)


def _count_image(method: Method, recipe: Recipe) -> float:
    """Count the operations of one image."""
    size, meta = recipe.data.size_px, torch.device("meta")
    images = torch.empty(1, recipe.data.channels, size, size, device=meta)
    inputs, labels = method.inputs, torch.zeros(1, dtype=torch.int64, device=meta)
    latents = torch.empty(1, inputs.latent_size, device=meta) if inputs.latent_size else None
    with _OperationCounter() as counter, torch.no_grad():
        codes = method.codes(Conditions(labels, images if inputs.references else None, latents))
        method.make(images if inputs.source else None, codes)
    return counter.total


def _convolution_speed(shapes: _Convolution, device: torch.device) -> float:
    """Return operations a second of a convolution, the best of four."""
    images, weight = torch.randn(shapes.images, device=device), torch.randn(shapes.weight, device=device)
    best = float("inf")
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            F.conv2d(images, weight, stride=shapes.stride, padding=shapes.padding)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return shapes.flops / best


def _mean_image_bytes(index: ImageIndex, recipe: Recipe, plan: Plan) -> float:
    rows = index.rows("train", plan.targets[0].name)[:_SAMPLED_IMAGES]
    return float(np.mean([len(imaging.encode(index.square(int(row), recipe.data), "jpg", 95)) for row in rows]))


def with_estimate(index: ImageIndex, recipe: Recipe, plan: Plan, device: torch.device) -> Plan:
    """Return the plan with its forecast."""
    return replace(plan, estimate=estimate(index, recipe, plan, device))
