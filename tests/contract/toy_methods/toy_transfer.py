"""Pre-trained on rich classes, then fine-tuned on all: the second stage starts from the weights of the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from toy_networks import Critic, FromNoise, Painter

from rebalance.config import TrainingOptions
from rebalance.config.method import Inputs, MethodOptions, StagePlan
from rebalance.config.options import option
from rebalance.learning.batches import ClassBatch
from rebalance.learning.sampling import ClassSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.methods.registry import register
from rebalance.networks import losses
from rebalance.runtime.ranks import Ranks

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe

SOURCE, MAIN = "source", "main"


@register("toy_transfer")
@dataclass(frozen=True)
class ToyTransferOptions(MethodOptions):
    """Options of the toy."""

    width: int = option(4, "channels", at_least=1)
    latent: int = option(3, "length of the latent", at_least=1)
    source_steps: int = option(3, "steps of the pre-training", at_least=1)
    shared: bool = option(True, "one pre-training for all models, on rich classes; else one for each, on its own")

    @property
    def inputs(self) -> Inputs:
        """Return a latent and nothing else."""
        return Inputs(source=False, references=False, latent_size=self.latent, modality="label")

    @property
    def needs_rich_class(self) -> bool:
        """Return True: the pre-training is of rich classes."""
        return True

    def stages(self, recipe: Recipe) -> tuple[StagePlan, ...]:
        """Return the pre-training, then the fine-tuning of each model."""
        source = replace(recipe.training, steps=self.source_steps)
        return (StagePlan(SOURCE, source, shared=self.shared), StagePlan(MAIN, recipe.training))

    def build(self, context: BuildContext) -> ToyTransfer:
        """Build a stage; fine-tuning starts from the pre-training, where there is one."""
        return ToyTransfer(self, context)


class ToyTransfer(Method):
    """A conditional generator; while it is fine-tuned, the layers near the pixels stay as they were."""

    generating = ("classes", "generator", "painter")
    averaged = ("classes", "generator")

    def __init__(self, options: ToyTransferOptions, context: BuildContext) -> None:
        self.options, self.inputs, self.fine_tuning = options, options.inputs, context.stage == MAIN
        channels, width, latent = context.recipe.data.channels, options.width, options.latent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            trunk = {
                "generator": FromNoise(width, 2 * latent),
                "critic": Critic(channels, width, 1),
                "painter": Painter(channels, width, 2 * latent),
            }
            self.networks = {"classes": nn.Embedding(context.n_classes, latent), **trunk}
        if self.fine_tuning:
            self._start_from(trunk, context)
            self.frozen, self.saved_frozen = {"painter": self.networks.pop("painter")}, ("painter",)

    def _start_from(self, trunk: Mapping[str, nn.Module], context: BuildContext) -> None:
        for name, network in trunk.items():
            context.load_earlier(SOURCE, name, network)
        if context.earlier is None:
            return
        earlier = context.earlier[SOURCE]
        learned = nn.Embedding(len(earlier.labels), self.options.latent)
        earlier.load("classes", learned)
        with torch.no_grad():
            for number, modality in enumerate(context.labels):
                if modality in earlier.labels:
                    self.networks["classes"].weight[number] = learned.weight[earlier.labels.index(modality)]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the critic's phase, then that of all that makes images."""
        return (Phase("critic", ("critic",)), Phase("generator", tuple(self.optimizers)[1:]))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return a lower rate for the classes."""
        rates = {"critic": 2e-3, "classes": 5e-4, "generator": 1e-3}
        if not self.fine_tuning:
            rates["painter"] = 1e-3
        return {name: NetworkOptimizer(rate) for name, rate in rates.items()}

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> ClassSampler:
        """Return images of classes."""
        return ClassSampler(pools, options.batch, seed, ranks=ranks)

    def forward(self, batch: ClassBatch, context: StepContext) -> torch.Tensor:
        """Make one image for each real one."""
        latents = context.draws.normal(len(batch), self.options.latent).to(batch.images.device)
        return self.make(None, self.codes(Conditions(batch.labels, latents=latents)))

    def loss(self, phase: str, batch: ClassBatch, outputs: torch.Tensor, context: StepContext) -> Loss:
        """Return the hinge loss of a side."""
        critic = self.networks["critic"]
        if phase == "generator":
            value = losses.hinge_generator(critic(outputs).float())
        else:
            value = losses.hinge_discriminator(critic(batch.images).float(), critic(outputs.detach()).float())
        return Loss(value, {"adversarial": value})

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return class and latent as one code."""
        assert conditions.latents is not None
        return torch.cat([self.networks["classes"](conditions.labels), conditions.latents], 1)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Make images of codes."""
        return self.module("painter")(self.networks["generator"](codes), codes)
