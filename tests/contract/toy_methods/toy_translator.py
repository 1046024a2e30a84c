"""A translator by reference: four phases over four networks, and a mapping network at a hundredth of the rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from toy_networks import Critic, Translator

from rebalance.config import TrainingOptions
from rebalance.config.method import Inputs, MethodOptions
from rebalance.config.options import option
from rebalance.learning.batches import PairBatch
from rebalance.learning.sampling import PairSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.methods.registry import register
from rebalance.runtime.ranks import Ranks


@register("toy_translator")
@dataclass(frozen=True)
class ToyTranslatorOptions(MethodOptions):
    """Options of the toy."""

    width: int = option(4, "channels", at_least=1)
    style: int = option(3, "length of the style code", at_least=1)
    lr: float = option(1e-3, "learning rate of all but the mapping network", above=0)

    @property
    def inputs(self) -> Inputs:
        """Return a source and references."""
        return Inputs(modality="reference")

    @property
    def batch_multiple(self) -> int:
        """Return 2: neighbours are two references of one translator class."""
        return 2

    def build(self, context: BuildContext) -> ToyTranslator:
        """Build all four networks."""
        return ToyTranslator(self, context)


class PerClass(nn.Module):
    """A trunk with one output (B, size) for each class, of which the labels choose one."""

    def __init__(self, trunk: nn.Module, width: int, size: int, n_classes: int) -> None:
        super().__init__()
        self.trunk, self.size = trunk, size
        self.heads = nn.Linear(width, size * n_classes)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the output of each row's class."""
        outputs = self.heads(self.trunk(inputs)).unflatten(1, (-1, self.size))
        return outputs[torch.arange(len(labels), device=labels.device), labels]


class ToyTranslator(Method):
    """Styles come from a latent or from a reference; each kind has a phase of each side."""

    averaged = ("generator", "mapping", "style")
    generating = ("generator", "style")

    def __init__(self, options: ToyTranslatorOptions, context: BuildContext) -> None:
        self.options, self.inputs = options, options.inputs
        channels, width, style, n = context.recipe.data.channels, options.width, options.style, context.n_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            of_image = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten())
            of_latent = nn.Sequential(nn.Linear(style, width), nn.ReLU())
            self.networks = {
                "generator": Translator(channels, width, style),
                "mapping": PerClass(of_latent, width, style, n),
                "style": PerClass(of_image, width * 16, style, n),
                "discriminator": Critic(channels, width, n),
            }

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return both of the discriminator, then both of the generator; only the first moves the styles."""
        return (
            Phase("discriminator_latent", ("discriminator",)),
            Phase("discriminator_reference", ("discriminator",)),
            Phase("generator_latent", ("generator", "mapping", "style")),
            Phase("generator_reference", ("generator",)),
        )

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return a hundredth of the rate for the mapping network."""
        rate = self.options.lr
        rates = {"discriminator": rate, "generator": rate, "style": rate, "mapping": rate / 100}
        return {name: NetworkOptimizer(lr, "adam", beta1=0.0, beta2=0.99) for name, lr in rates.items()}

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> PairSampler:
        """Return pairs, two and two with references of one translator class."""
        return PairSampler(
            pools, options.draw, options.batch, seed, per_class=self.options.batch_multiple, same_modality=True,
            ranks=ranks,
        )  # fmt: skip

    def loss(self, phase: str, batch: PairBatch, outputs: None, context: StepContext) -> Loss:
        """Return the loss of a side, with styles of the kind that the phase is named after."""
        side, kind = phase.split("_")
        styles, others = self._styles(kind, batch, context)
        if side == "discriminator":
            return self._discriminator_loss(batch, styles, context)
        return self._generator_loss(batch, styles, others)

    def _styles(self, kind: str, batch: PairBatch, context: StepContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two styles of each row's class."""
        labels, style = batch.reference_label, self.networks["style"]
        if kind == "reference":
            neighbour = torch.arange(len(batch), device=labels.device) ^ 1
            of_references = style(batch.reference, labels)
            return of_references, of_references[neighbour]
        latents = context.draws.normal(2 * len(batch), self.options.style).to(labels.device)
        first, second = self.networks["mapping"](latents, labels.repeat(2)).chunk(2)
        return first, second

    def _discriminator_loss(self, batch: PairBatch, styles: torch.Tensor, context: StepContext) -> Loss:
        discriminator = self.networks["discriminator"]
        fake = self.networks["generator"](batch.source, styles).detach()
        real = batch.source.detach().requires_grad_(bool(context.regularize))
        scores = discriminator(real, batch.source_label).float()
        value = F.softplus(-scores).mean()
        value = value + F.softplus(discriminator(fake, batch.reference_label).float()).mean()
        terms, total = {"adversarial": value}, value
        if context.regularize:
            (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            terms["r1"] = gradient.float().square().sum((1, 2, 3)).mean()
            total = total + 0.5 * context.regularize * terms["r1"]
        return Loss(total, terms)

    def _generator_loss(self, batch: PairBatch, styles: torch.Tensor, others: torch.Tensor) -> Loss:
        generator, style, labels = self.networks["generator"], self.networks["style"], batch.reference_label
        fake = generator(batch.source, styles)
        with torch.no_grad():
            other = generator(batch.source, others)
        terms = {
            "adversarial": F.softplus(-self.networks["discriminator"](fake, labels).float()).mean(),
            "style": (style(fake, labels) - styles).float().abs().mean(),
            "diversity": (fake - other).float().abs().mean(),
            "cycle": (generator(fake, style(batch.source, batch.source_label)) - batch.source).float().abs().mean(),
        }
        total = terms["adversarial"] + terms["style"] - terms["diversity"] + terms["cycle"]
        return Loss(total, terms, translations=fake)

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return the styles of references."""
        assert conditions.references is not None
        return self.networks["style"](conditions.references, conditions.labels)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources into styles."""
        return self.networks["generator"](sources, codes)
