"""Noise to image: WGAN-GP with three steps of the critic for one of the generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from toy_networks import Critic, FromNoise, Painter, gradient_penalty

from rebalance.config import TrainingOptions
from rebalance.config.method import Inputs, MethodOptions
from rebalance.config.options import option
from rebalance.learning.batches import ClassBatch
from rebalance.learning.sampling import ClassSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.methods.registry import register
from rebalance.runtime.ranks import Ranks

CRITIC_STEPS = 3


@register("toy_noise")
@dataclass(frozen=True)
class ToyNoiseOptions(MethodOptions):
    """Options of the toy."""

    width: int = option(4, "channels", at_least=1)
    latent: int = option(3, "length of the latent", at_least=1)

    @property
    def inputs(self) -> Inputs:
        """Return a latent and nothing else."""
        return Inputs(source=False, references=False, latent_size=self.latent, modality="label")

    @property
    def batch_parts(self) -> int:
        """Return one part for each step of the critic and one for the generator's."""
        return CRITIC_STEPS + 1

    def build(self, context: BuildContext) -> ToyNoise:
        """Build generator and critic."""
        return ToyNoise(self, context)


class NoiseGenerator(nn.Module):
    """Images of a class and a latent."""

    def __init__(self, n_classes: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(n_classes, latent)
        self.content, self.painter = FromNoise(width, 2 * latent), Painter(channels, width, 2 * latent)

    def codes(self, labels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return codes (B, 2 * latent)."""
        return torch.cat([self.classes(labels), latents.to(self.classes.weight.dtype)], 1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Make images of codes."""
        return self.painter(self.content(codes), codes)


class ToyNoise(Method):
    """A generator that no real image enters."""

    averaged = ("generator",)
    generating = ("generator",)

    def __init__(self, options: ToyNoiseOptions, context: BuildContext) -> None:
        self.options, self.inputs = options, options.inputs
        channels = context.recipe.data.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.networks = {
                "generator": NoiseGenerator(context.n_classes, channels, options.width, options.latent),
                "critic": Critic(channels, options.width, context.n_classes),
            }

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return three steps of the critic, then one of the generator."""
        return (Phase("critic", ("critic",), repeats=CRITIC_STEPS), Phase("generator", ("generator",)))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return Adam without momentum, as WGAN-GP asks for."""
        return {
            "critic": NetworkOptimizer(4e-3, "adam", beta1=0.0, beta2=0.9),
            "generator": NetworkOptimizer(2e-3, "adam", beta1=0.0, beta2=0.9),
        }

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> ClassSampler:
        """Return images of classes, in parts."""
        return ClassSampler(pools, options.batch, seed, self.options.batch_parts, ranks)

    def loss(self, phase: str, batch: ClassBatch, outputs: None, context: StepContext) -> Loss:
        """Return the loss of a repetition on rows of its own; the generator has the last part."""
        size = len(batch) // self.options.batch_parts
        part = context.repeat if phase == "critic" else CRITIC_STEPS
        real = batch.rows(slice(part * size, (part + 1) * size))
        draws, device = context.draws.of_rows(size), batch.images.device
        generator, critic = self.networks["generator"], self.networks["critic"]
        latents = draws.normal(size, self.options.latent).to(device)
        fake = generator(generator.codes(real.labels, latents))
        if phase == "generator":
            adversarial = -critic(fake, real.labels).float().mean()
            return Loss(adversarial, {"adversarial": adversarial})
        fake = fake.detach()
        distance = critic(real.images, real.labels).float().mean() - critic(fake, real.labels).float().mean()
        share = draws.uniform(size, 1, 1, 1).to(device)
        penalty = gradient_penalty(critic, real.images, fake, real.labels, share)
        return Loss(10 * penalty - distance, {"distance": distance, "penalty": penalty})

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return class and latent as one code."""
        assert conditions.latents is not None
        return self.networks["generator"].codes(conditions.labels, conditions.latents)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Make images of codes."""
        return self.networks["generator"](codes)
