"""Options of the BalaGAN method. Defaults are the released values where the paper's code has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance.config.method import MethodOptions
from rebalance.config.options import Options, option
from rebalance.errors import InputError
from rebalance.methods.registry import register

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe
    from rebalance.methods.balagan.method import Balagan
    from rebalance.methods.base import BuildContext


@dataclass(frozen=True)
class GeneratorOptions(Options):
    """The translator G(x, y) = F(E_source(x), E_ref(y))."""

    base_filters: int = option(64, "channels after the first convolution", at_least=1)
    content_downs: int = option(3, "stride-2 convolutions of the source encoder, each doubling channels", at_least=1)
    reference_downs: int = option(4, "stride-2 convolutions of the reference encoder; the first two double", at_least=2)
    residual_blocks: int = option(2, "residual blocks of the source encoder, and AdaIN ones of the decoder", at_least=1)
    style_size: int = option(64, "length of the style code", at_least=1)
    mlp_width: int = option(256, "width of the MLP from style code to AdaIN parameters", at_least=1)
    mlp_layers: int = option(3, "linear layers of that MLP", at_least=2)
    stem_kernel: int = option(7, "kernel of the first and last convolution", choices=(1, 3, 5, 7, 9))
    down_kernel: int = option(4, "kernel of the stride-2 convolutions", choices=(2, 4, 6))
    up_kernel: int = option(5, "kernel of the convolution after each upsampling", choices=(1, 3, 5, 7))
    upsampling: str = option("nearest", "interpolation of the decoder", choices=("nearest", "bilinear"))
    style_in_upsampling: bool = option(
        False,
        "AdaIN after the decoder's upsampling too; the paper's instance norm there removes brightness and contrast "
        "that the reference could give",
    )


@dataclass(frozen=True)
class DiscriminatorOptions(Options):
    """The discriminator: a shared trunk, an adversarial head and a class head."""

    base_filters: int = option(64, "channels after the first convolution", at_least=1)
    blocks: int = option(10, "residual blocks, two a stage, pooling between stages", at_least=2)
    max_filters: int = option(1024, "channels stop doubling here", at_least=1)
    stem_kernel: int = option(7, "kernel of the first convolution", choices=(1, 3, 5, 7, 9))
    stem_stride: int = option(1, "stride of the first convolution; 2 costs a quarter", choices=(1, 2))
    classifier_head: bool = option(True, "the D_cls head; off is the paper's ablation B")

    def __post_init__(self) -> None:
        """Check that the blocks fill whole stages."""
        super().__post_init__()
        if self.blocks % 2:
            raise InputError("balagan.discriminator.blocks", value=self.blocks, allowed="even numbers: two a stage")


@dataclass(frozen=True)
class LossWeights(Options):
    """Weights of the terms of equations 2 to 6."""

    adversarial: float = option(1.0, "hinge loss", at_least=0)
    reconstruction: float = option(0.1, "L1 between x and G(x, x)", at_least=0)
    feature_matching: float = option(1.0, "L1 between pooled discriminator features", at_least=0)
    classification: float = option(1.0, "cross-entropy of the class head on real images", at_least=0)
    classification_of_translations: float = option(
        0.0,
        "cross-entropy of the class head on translations, in the generator's step; 0 in the paper",
        at_least=0,
    )
    spread: float = option(
        0.0,
        "hinge on the distances between translations that differ only in their reference, or only in their source; 0 "
        "in the paper",
        at_least=0,
    )
    r1: float = option(
        10 / 9,
        "R1 on the mean squared gradient norm of an image; the released 10 acts on the gradient of a mean over a batch "
        "of 3, which is 10/9 here",
        at_least=0,
    )


@register("balagan")
@dataclass(frozen=True)
class BalaganOptions(MethodOptions):
    """Everything that is BalaGAN's own."""

    generator: GeneratorOptions = option(GeneratorOptions, "translator")
    discriminator: DiscriminatorOptions = option(DiscriminatorOptions, "discriminator")
    weights: LossWeights = option(LossWeights, "loss weights")
    lr_generator: float = option(1e-4, "learning rate of the generator", above=0)
    lr_discriminator: float = option(1e-4, "learning rate of the discriminator", above=0)
    target_in_training: bool = option(True, "train on target images; off is the paper's ablation C (FUNIT)")
    adversarial_reconstruction: bool = option(
        True, "the generator's adversarial and feature-matching terms also take the reconstruction, as released"
    )
    spread_over_references: float = option(
        0.75,
        "translations of one source are at least this many times as far apart (L1) as their references",
        at_least=0,
    )
    spread_over_sources: float = option(
        0.6,
        "translations with one reference are at least this many times as far apart (L1) as two references of the class",
        at_least=0,
    )
    diff_augment: tuple[str, ...] = option(
        (),
        "DiffAugment policy, the same in both networks' steps",
        choices=("brightness", "contrast", "saturation", "translation", "cutout"),
    )
    translation_fraction: float = option(0.125, "largest DiffAugment shift, of the image's side", at_least=0, at_most=1)
    class_codes: bool = option(
        False, "add a learned code of its class to the style code of a reference; off in the paper"
    )
    reference_patch_shuffle: int = option(
        0,
        "cut the reference into this many patches a side, shuffle and flip them before the reference encoder, so that "
        "style codes cannot carry outlines; 0 is off, as in the paper",
        at_least=0,
    )

    @property
    def trains_on_targets(self) -> bool:
        """Return False for the paper's ablation C."""
        return self.target_in_training

    @property
    def batch_multiple(self) -> int:
        """Return 2 where pairs are compared with each other."""
        return 2 if self.weights.spread else 1

    def build(self, context: BuildContext) -> Balagan:
        """Build the translator and its discriminator."""
        from rebalance.methods.balagan.method import Balagan

        return Balagan.build(self, context)

    def check(self, recipe: Recipe) -> None:
        """Check options that need each other, and that the image allows so many halvings."""
        if self.class_codes and not self.target_in_training:
            raise InputError("balagan.class_codes needs balagan.target_in_training: a target's code must be learned")
        if self.weights.classification_of_translations and not self.discriminator.classifier_head:
            raise InputError(
                "balagan.weights.classification_of_translations needs balagan.discriminator.classifier_head"
            )
        size = recipe.data.size_px
        # One pixel of content would be 0 after instance normalisation: no source could be seen in it.
        least = max(
            2 ** (self.generator.content_downs + 1),
            2**self.generator.reference_downs,
            2 ** (self.discriminator.blocks // 2 - 1) * self.discriminator.stem_stride,
        )
        multiple = 2**self.generator.content_downs
        if size % multiple or size < least:
            raise InputError(
                "data.size_px does not fit the networks",
                value=size,
                allowed=f"multiples of {multiple}, at least {least}",
                remedy="Change data.size_px, or the content_downs, reference_downs and blocks of balagan",
            )
