"""BalaGAN (Patashnik et al., 2020): one translator learns all translations among modalities and poor classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import nn

from rebalance.config import TrainingOptions
from rebalance.learning.batches import PairBatch
from rebalance.learning.sampling import PairSampler, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.balagan.networks import Decoder, Discriminator, ReferenceEncoder, SourceEncoder, Translator
from rebalance.methods.balagan.options import BalaganOptions, GeneratorOptions
from rebalance.methods.base import BuildContext, Conditions, Method
from rebalance.networks import losses
from rebalance.networks.augmentations import diff_augment, shuffle_patches
from rebalance.runtime.ranks import Ranks


@dataclass(frozen=True)
class Translations:
    """Results of the generator that both phases of a step share.

    Attributes:
        translation: G(x, y), (B, C, H, W).
        reconstruction: G(x, x), (B, C, H, W).
        content: E_source(x), (B, c, h, w).
        codes: the references' style codes, (B, style_size).
    """

    translation: torch.Tensor
    reconstruction: torch.Tensor
    content: torch.Tensor
    codes: torch.Tensor


def build_translator(channels: int, options: GeneratorOptions, n_class_codes: int = 0) -> Translator:
    """Build the translator that the options name, with a learned code for each of so many classes."""
    kernels = (options.stem_kernel, options.down_kernel)
    source_encoder = SourceEncoder(
        channels, options.base_filters, options.content_downs, options.residual_blocks, *kernels
    )
    reference_encoder = ReferenceEncoder(
        channels, options.base_filters, options.reference_downs, options.style_size, *kernels
    )
    decoder = Decoder(
        channels,
        source_encoder.width,
        options.content_downs,
        options.residual_blocks,
        options.style_size,
        options.mlp_width,
        options.mlp_layers,
        options.stem_kernel,
        options.up_kernel,
        options.upsampling,
        options.style_in_upsampling,
    )
    class_codes = nn.Embedding(n_class_codes, options.style_size) if n_class_codes else None
    return Translator(source_encoder, reference_encoder, decoder, class_codes)


class Balagan(Method):
    """Equations 1 to 6 of the paper.

    The generator runs once a step, translation and reconstruction in one batch over one content code; both phases use
    it. The discriminator sees real and fake images in one forward pass, from which adversarial, class and R1 terms
    come; in the generator's phase the loop freezes it.

    Deviations from the paper, all off in the `paper-*` recipes: DiffAugment (`diff_augment`), shuffled patches of what
    the reference encoder sees (`reference_patch_shuffle`), a learned code of the class beside the reference's
    (`class_codes`), AdaIN and bilinear interpolation in the decoder's upsampling (`generator.style_in_upsampling`,
    `generator.upsampling`), a cheaper discriminator (`discriminator.stem_stride`), the class head's term on
    translations in the generator's phase (`weights.classification_of_translations`), and a hinge that keeps
    translations as far apart as their references are (`weights.spread`).

    As in the released code, and switched off by `adversarial_reconstruction`, the generator's adversarial term averages
    translation and reconstruction, and feature matching also compares the reconstruction with its source.
    """

    averaged = ("generator",)
    generating = ("generator", "discriminator")

    def __init__(self, options: BalaganOptions, generator: Translator, discriminator: Discriminator) -> None:
        self.options, self.inputs = options, options.inputs
        self.networks = {"generator": generator, "discriminator": discriminator}

    @classmethod
    def build(cls, options: BalaganOptions, context: BuildContext) -> Balagan:
        """Build generator and discriminator, their weights drawn from the seed."""
        channels, n_classes = context.recipe.data.channels, context.n_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            generator = build_translator(channels, options.generator, n_classes if options.class_codes else 0)
            discriminator = Discriminator(n_classes, channels=channels, **asdict(options.discriminator))
        return cls(options, generator, discriminator)

    @property
    def generator(self) -> Translator:
        """Return the translator."""
        return cast(Translator, self.networks["generator"])

    @property
    def discriminator(self) -> Discriminator:
        """Return the discriminator."""
        return cast(Discriminator, self.networks["discriminator"])

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the discriminator's phase, then the generator's."""
        return (Phase("discriminator", ("discriminator",)), Phase("generator", ("generator",)))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return an optimiser for each network, with its rate."""
        return {
            "discriminator": NetworkOptimizer(self.options.lr_discriminator),
            "generator": NetworkOptimizer(self.options.lr_generator),
        }

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> PairSampler:
        """Return pairs of source and reference."""
        return PairSampler(pools, options.draw, options.batch, seed, per_class=self.options.batch_multiple, ranks=ranks)

    def forward(self, batch: PairBatch, context: StepContext) -> Translations:
        """Translate and reconstruct the batch's sources."""
        generator = self.generator
        references = torch.cat([batch.reference, batch.source])
        if self.options.reference_patch_shuffle:
            references = shuffle_patches(references, self.options.reference_patch_shuffle, context.draws)
        content = generator.source_encoder(batch.source)
        codes = generator.style(references, torch.cat([batch.reference_label, batch.source_label]))
        translation, reconstruction = generator.decoder(content.repeat(2, 1, 1, 1), codes).chunk(2)
        return Translations(translation, reconstruction, content, codes.chunk(2)[0])

    def loss(self, phase: str, batch: PairBatch, outputs: Translations, context: StepContext) -> Loss:
        """Return equation 6 for one of the two networks."""
        if phase == "discriminator":
            return self._discriminator_loss(batch, outputs, context)
        return self._generator_loss(batch, outputs, context)

    def _discriminator_loss(self, batch: PairBatch, outputs: Translations, context: StepContext) -> Loss:
        weights, discriminator = self.options.weights, self.discriminator
        labels = batch.reference_label
        real = batch.reference
        with_r1 = bool(context.regularize and weights.r1)
        if with_r1:
            real = real.detach().requires_grad_()
        fake = outputs.translation.detach()
        if with_r1:
            # Apart, so that differentiating the gradient does not pass through the fake half.
            real_features = discriminator.features(self._augment(real, context))
            fake_features = discriminator.features(self._augment(fake, context))
        else:
            both = discriminator.features(self._augment(torch.cat([real, fake.to(real.dtype)]), context))
            real_features, fake_features = both.chunk(2)
        real_scores = discriminator.adversarial(real_features, labels)
        fake_scores = discriminator.adversarial(fake_features, labels)
        adversarial = losses.hinge_discriminator(real_scores.float(), fake_scores.float())
        terms = {"adversarial": adversarial, "score_real": real_scores.mean(), "score_fake": fake_scores.mean()}
        total = weights.adversarial * adversarial
        if self.has_class_head:
            logits = discriminator.classify(real_features).float()
            terms["classification"] = torch.nn.functional.cross_entropy(logits, labels)
            total = total + weights.classification * terms["classification"]
        if with_r1:
            terms["r1"] = losses.r1_penalty(real_scores, real)
            total = total + weights.r1 * context.regularize * terms["r1"]
        return Loss(total, terms)

    def _generator_loss(self, batch: PairBatch, outputs: Translations, context: StepContext) -> Loss:
        weights, discriminator = self.options.weights, self.discriminator
        fakes, labels, reals = outputs.translation, batch.reference_label, batch.reference
        if self.options.adversarial_reconstruction:
            fakes = torch.cat([fakes, outputs.reconstruction])
            labels = torch.cat([labels, batch.source_label])
            reals = torch.cat([reals, batch.source])
        features = discriminator.features(self._augment(fakes, context))
        with torch.no_grad():
            real_features = discriminator.features(self._augment(reals, context))
        n_pairs = len(fakes) // len(batch.source)
        terms = {
            "adversarial": losses.hinge_generator(discriminator.adversarial(features, labels).float()),
            "reconstruction": torch.nn.functional.l1_loss(outputs.reconstruction.float(), batch.source),
            # Summed over translation and reconstruction, as released.
            "feature_matching": losses.feature_matching(features, real_features) * n_pairs,
        }
        total = (
            weights.adversarial * terms["adversarial"]
            + weights.reconstruction * terms["reconstruction"]
            + weights.feature_matching * terms["feature_matching"]
        )
        if weights.classification_of_translations:
            logits = discriminator.classify(features[: len(batch.source)]).float()
            terms["classification"] = torch.nn.functional.cross_entropy(logits, batch.reference_label)
            total = total + weights.classification_of_translations * terms["classification"]
        if weights.spread:
            terms["spread"] = self._spread(batch, outputs, context)
            total = total + weights.spread * terms["spread"]
        return Loss(total, terms, translations=outputs.translation)

    def _spread(self, batch: PairBatch, outputs: Translations, context: StepContext) -> torch.Tensor:
        """Cross each pair (x, y) with its neighbour (x', y') of the same class, and keep apart what should be."""
        neighbour = torch.arange(len(batch.source), device=batch.source.device) ^ 1
        same_class = batch.reference_label == batch.reference_label[neighbour]
        distance = (batch.reference - batch.reference[neighbour]).abs().mean((1, 2, 3)) * same_class
        # G(x, y') and, at the neighbour's place, G(x', y).
        crossed = self.generator.decoder(outputs.content, outputs.codes[neighbour]).float()
        translation = outputs.translation.float()
        over_references = losses.spread(translation, crossed, distance * self.options.spread_over_references)
        over_sources = losses.spread(translation, crossed[neighbour], distance * self.options.spread_over_sources)
        n_pairs = context.ranks.total(same_class.sum()) / context.ranks.count
        return (over_references + over_sources).sum() / n_pairs.clamp(min=1 / context.ranks.count)

    def _augment(self, images: torch.Tensor, context: StepContext) -> torch.Tensor:
        policy = self.options.diff_augment
        if not policy:
            return images
        return diff_augment(images, policy, self.options.translation_fraction, context.draws)

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return the style codes (B, style_size) of references."""
        if conditions.references is None:
            raise ValueError("BalaGAN takes the style of references")
        return self.generator.style(conditions.references, conditions.labels)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Translate sources (B, C, H, W) into the styles of codes (B, style_size)."""
        if sources is None:
            raise ValueError("BalaGAN translates sources")
        return self.generator.decoder(self.generator.source_encoder(sources), codes)

    @property
    def has_class_head(self) -> bool:
        """Return whether the discriminator was built with D_cls."""
        return self.discriminator.class_head is not None

    def class_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return D_cls, (B, translator classes)."""
        discriminator = self.discriminator
        return discriminator.classify(discriminator.features(images))
