"""Directed pairs, weighed in the batch; the weighting network moves last. One model a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from toy_networks import Critic, Translator

from rebalance.config import TrainingOptions
from rebalance.config.method import Inputs, MethodOptions
from rebalance.config.options import option
from rebalance.errors import InputError
from rebalance.learning.batches import PairBatch
from rebalance.learning.sampling import PairSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.methods.registry import register
from rebalance.runtime.ranks import Ranks

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe


@register("toy_directed")
@dataclass(frozen=True)
class ToyDirectedOptions(MethodOptions):
    """Options of the toy."""

    width: int = option(4, "channels", at_least=1)
    latent: int = option(2, "length of the latent", at_least=1)

    @property
    def inputs(self) -> Inputs:
        """Return a source and a latent."""
        return Inputs(references=False, latent_size=self.latent)

    def check(self, recipe: Recipe) -> None:
        """Refuse one model for several targets: it would not know which one is meant."""
        if recipe.training.models != "per-class":
            raise InputError("training.models with toy_directed", value=recipe.training.models, allowed="per-class")

    def build(self, context: BuildContext) -> ToyDirected:
        """Build the translator to one target."""
        return ToyDirected(self, context)


class ToyDirected(Method):
    """A translator from rich classes to one target whose batch is weighed until both sides have one mass."""

    averaged = ("generator",)
    generating = ("generator",)

    def __init__(self, options: ToyDirectedOptions, context: BuildContext) -> None:
        self.options, self.inputs = options, options.inputs
        channels, width = context.recipe.data.channels, options.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.networks = {
                "generator": Translator(channels, width, options.latent),
                "discriminator": Critic(channels, width, 1),
                "weights": Critic(channels, width, 1),
            }

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the weighting network's phase last."""
        return tuple(Phase(name, (name,)) for name in ("discriminator", "generator", "weights"))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return a lower rate for the weights."""
        rates = {"discriminator": 2e-3, "generator": 1e-3, "weights": 5e-4}
        return {name: NetworkOptimizer(rate) for name, rate in rates.items()}

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> PairSampler:
        """Return pairs of a source and an image of its target."""
        return PairSampler(pools, options.draw, options.batch, seed, directed=True, ranks=ranks)

    def loss(self, phase: str, batch: PairBatch, outputs: None, context: StepContext) -> Loss:
        """Return the weighed loss of a side, or the imbalance of both."""
        discriminator = self.networks["discriminator"]
        latents = context.draws.normal(len(batch), self.options.latent).to(batch.source.device)
        fake = self.networks["generator"](batch.source, latents)
        logits = 3 * self.networks["weights"](batch.source).float().squeeze(1).tanh()
        weights = _batch_weights(logits.detach(), context.ranks)
        if phase == "generator":
            value = (weights * F.softplus(-discriminator(fake).float().squeeze(1))).mean()
            return Loss(value, {"adversarial": value}, translations=fake)
        of_real = discriminator(batch.reference).float().squeeze(1)
        of_fake = discriminator(fake.detach()).float().squeeze(1)
        if phase == "discriminator":
            value = F.softplus(-of_real).mean() + (weights * F.softplus(of_fake)).mean()
            return Loss(value, {"adversarial": value})
        return _imbalance_loss(logits, weights, of_real.detach(), of_fake.detach(), context.ranks)

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return the latents."""
        assert conditions.latents is not None
        return conditions.latents

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources."""
        return self.networks["generator"](sources, codes)


def _mean_of_all(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    return ranks.total(values.mean()) / ranks.count


def _batch_weights(logits: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the softmax over the whole batch, scaled to a mean of 1."""
    return logits.exp() / _mean_of_all(logits.exp(), ranks)


def _imbalance_loss(
    logits: torch.Tensor, weights: torch.Tensor, of_real: torch.Tensor, of_fake: torch.Tensor, ranks: Ranks
) -> Loss:
    """Return a loss with the gradient of (mean(weights of_fake) - mean(of_real))^2, means over the whole batch.

    The softmax joins rows of all processes, so its derivative is written out: d weights_i = weights_i (d logits_i -
    mean(weights d logits)).
    """
    weighed = _mean_of_all(weights * of_fake, ranks)
    imbalance = weighed - _mean_of_all(of_real, ranks)
    value = (2 * imbalance * weights * (of_fake - weighed) * logits).mean()
    return Loss(value, {"imbalance": imbalance})
