"""Translation by label and latent, with cycle and latent reconstruction, in the shape of SDIT (Wang et al., 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rebalance.config import TrainingOptions
from rebalance.learning.batches import PairBatch
from rebalance.learning.sampling import PairSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.networks import losses
from rebalance.runtime.ranks import Ranks
from toy_label.networks import Discriminator, Generator
from toy_label.options import ToyLabelOptions


class ToyLabel(Method):
    """One generator for all classes; a latent makes its images diverse."""

    averaged = ("generator",)
    generating = ("generator",)

    def __init__(self, options: ToyLabelOptions, generator: Generator, discriminator: Discriminator) -> None:
        self.options, self.inputs = options, options.inputs
        self.networks = {"generator": generator, "discriminator": discriminator}

    @classmethod
    def build(cls, options: ToyLabelOptions, context: BuildContext) -> ToyLabel:
        """Build both networks, their weights drawn from the seed."""
        sizes = (context.n_classes, context.recipe.data.channels, options.width, options.latent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            return cls(options, Generator(*sizes), Discriminator(*sizes))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the discriminator's phase, then the generator's."""
        return (Phase("discriminator", ("discriminator",)), Phase("generator", ("generator",)))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return an optimiser for each network."""
        return {name: NetworkOptimizer(self.options.lr) for name in self.networks}

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> PairSampler:
        """Return pairs; the reference is the real image of the class that the source becomes."""
        return PairSampler(pools, options.draw, options.batch, seed, ranks=ranks)

    def forward(self, batch: PairBatch, context: StepContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw latents and translate the sources; both phases use the result."""
        latents = context.draws.normal(len(batch), self.options.latent).to(batch.source.device)
        return self._translate(batch.source, batch.reference_label, latents), latents

    def loss(
        self, phase: str, batch: PairBatch, outputs: tuple[torch.Tensor, torch.Tensor], context: StepContext
    ) -> Loss:
        """Return the loss of one of the two networks."""
        discriminator, (fake, latents) = self.networks["discriminator"], outputs
        if phase == "discriminator":
            of_real, _ = discriminator(batch.reference, batch.reference_label)
            of_fake, read = discriminator(fake.detach(), batch.reference_label)
            adversarial = losses.hinge_discriminator(of_real.float(), of_fake.float())
            latent = F.l1_loss(read.float(), latents)
            total = adversarial + self.options.latent_weight * latent
            return Loss(total, {"adversarial": adversarial, "latent": latent})
        of_fake, read = discriminator(fake, batch.reference_label)
        back = self._translate(fake, batch.source_label, latents)
        terms = {
            "adversarial": losses.hinge_generator(of_fake.float()),
            "latent": F.l1_loss(read.float(), latents),
            "cycle": F.l1_loss(back.float(), batch.source),
        }
        total = (
            terms["adversarial"]
            + self.options.latent_weight * terms["latent"]
            + self.options.cycle_weight * terms["cycle"]
        )
        return Loss(total, terms, translations=fake)

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return class and latent as one code (B, 2 * latent)."""
        if conditions.latents is None:
            raise ValueError("this method takes latents")
        return self.networks["generator"].codes(conditions.labels, conditions.latents)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources (B, C, H, W)."""
        return self.networks["generator"](sources, codes)

    def _translate(self, images: torch.Tensor, labels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return self.make(images, self.codes(Conditions(labels, latents=latents)))
