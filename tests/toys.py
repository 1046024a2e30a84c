"""Small data, recipes, trainables and readers that several test modules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import rebalance
from rebalance import FeatureChoice, FilterChoice, OutputOptions
from rebalance.config import Recipe, build_recipe
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable
from rebalance.measures.frechet import Moments

TINY_BALAGAN = {
    "generator": {
        "base_filters": 4, "content_downs": 1, "reference_downs": 2, "residual_blocks": 1, "style_size": 4,
        "mlp_width": 8, "mlp_layers": 2, "stem_kernel": 3, "up_kernel": 3,
    },
    "discriminator": {"base_filters": 4, "blocks": 4, "stem_kernel": 3},
}  # fmt: skip


def plain_moments(features: np.ndarray) -> Moments:
    """Moments without shrinkage, by numpy."""
    return Moments(features.mean(0), np.cov(features.T), len(features))


def tiny_recipe(**sections: Mapping[str, object] | object) -> Recipe:
    """A recipe of 8 px images and a few thousand weights; keyword arguments are merged into its sections."""
    values: dict[str, object] = {
        "method": "balagan",
        "data": {"size_px": 8, "channels": 3, "val_fraction": 0.0},
        "features": {"input_px": 32},
        "filtering": {"checks": [], "pool_images": 64},
        "modalities": {"by": "none", "encoder": {"precision": "fp32", "memory_format": "contiguous"}},
        "balagan": TINY_BALAGAN,
        "training": {
            "batch": 3, "steps": 4, "precision": "fp32", "memory_format": "contiguous", "threads": 1,
            "log_every_steps": 2, "preview_every_steps": 2, "checkpoint_every_steps": 2,
        },
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, Mapping) else section
    return build_recipe(values)


def write_classes(root: Path, counts: Mapping[str, int], side: int = 8, seed: int = 0) -> Path:
    """Write an RGB image folder; every class has a colour of its own, and each of two modes in it a pattern."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        colour = np.array([50 + 45 * label, 200 - 40 * label, 120])
        for number in range(count):
            pixels = rng.normal(colour, 12, (side, side, 3))
            pixels[:, : side // 2] += 60 * (number % 2)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{number:03d}.png")
    return root


def generate(run: Path, out: Path | str, **options: Any) -> Any:
    """`rebalance.generate` with the fields of its option objects as keywords."""
    return rebalance.generate(run, out, **in_objects(options))


def filter_images(images: Path, real: Path, out: Path, **options: Any) -> Any:
    """`rebalance.filter` with the fields of its option objects as keywords."""
    return rebalance.filter(images, real, out, **in_objects(options))


def in_objects(options: Mapping[str, Any]) -> dict[str, Any]:
    """Gather keywords in the option objects that have fields of their names; `features` is the name of one."""
    rest = {"name" if key == "features" else key: value for key, value in options.items()}

    def taken(kind: type) -> dict[str, Any]:
        return {field.name: rest.pop(field.name) for field in fields(kind) if field.name in rest}

    features = FeatureChoice(**taken(FeatureChoice))
    output = OutputOptions(**taken(OutputOptions))
    return {"output": output, "filtering": FilterChoice(**taken(FilterChoice), features=features), **rest}


def weights_of(networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """A copy of every tensor of networks, by name."""
    return {f"{n}/{k}": v.detach().clone() for n, network in networks.items() for k, v in network.state_dict().items()}


def same_tensors(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two mappings hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class ToyBatch:
    """Rows (B, 3) of inputs, in the form the loop asks for."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> ToyBatch:
        return self


class ToyTrainable(Trainable):
    """A linear layer and a scale in two phases; records what the loop told it."""

    averaged = ("body",)

    def __init__(self, poisoned_step: int = -1) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.networks = {"body": nn.Linear(3, 3), "tail": nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))}
        self.poisoned_step = poisoned_step
        self.contexts: list[StepContext] = []

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("first", ("tail",)), Phase("second", ("body",)))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        return {"tail": NetworkOptimizer(1e-2), "body": NetworkOptimizer(1e-2)}

    def forward(self, batch: ToyBatch, context: StepContext) -> torch.Tensor:
        self.contexts.append(context)
        noise = context.draws.normal(*batch.rows.shape)
        return self.networks["body"](batch.rows + 0.1 * noise)

    def loss(self, phase: str, batch: ToyBatch, outputs: torch.Tensor, context: StepContext) -> Loss:
        hidden = outputs.detach() if phase == "first" else outputs
        value = (self.networks["tail"](hidden) - batch.rows.sum(1, keepdim=True)).square().mean()
        if context.step == self.poisoned_step:
            value = value * float("nan")
        return Loss(value, {"error": value})


def toy_batches(seed: int = 0, before: Callable[[int], None] = lambda step: None) -> Callable[[int], ToyBatch]:
    """Batches that are a pure function of the step; `before` is called with each step first."""

    def batch_at(step: int) -> ToyBatch:
        before(step)
        return ToyBatch(torch.randn(4, 3, generator=torch.Generator().manual_seed(1000 * seed + step)))

    return batch_at
