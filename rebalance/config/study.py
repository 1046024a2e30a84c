"""Options of the downstream study: the classifier that is trained with and without synthetic images."""

from __future__ import annotations

from dataclasses import dataclass

from rebalance.config.options import Options, option

CLASSIFIER_AUGMENTATIONS = ("translation", "flip")


@dataclass(frozen=True)
class DownstreamOptions(Options):
    """The classifier of `rebalance downstream`; every arm has the same one, and the same number of steps."""

    architecture: str = option(
        "cnn", "cnn: a convolution, batch norm and pooling a stage; resnet: basic blocks", choices=("cnn", "resnet")
    )
    width: int = option(32, "channels of the first stage, doubled in each that follows", at_least=1)
    blocks: tuple[int, ...] = option(
        (1, 1, 1), "stages, and residual blocks (resnet) or convolutions (cnn) of each", at_least=1
    )
    stem: str = option("small", "of resnet; large: 7x7 stride 2 and pooling, small: 3x3", choices=("large", "small"))
    dropout: float = option(0.2, "before the last layer", at_least=0, at_most=0.9)
    steps: int = option(1000, "steps of every arm", at_least=1)
    batch: int = option(64, "images a step", at_least=2)
    lr: float = option(2e-3, "Adam learning rate, which falls linearly to 0", above=0)
    weight_decay: float = option(1e-4, "L2 penalty", at_least=0)
    augmentations: tuple[str, ...] = option(
        ("translation", "flip"), "the standard augmentation, of arms with `+augment`", choices=CLASSIFIER_AUGMENTATIONS
    )
    translation_fraction: float = option(0.0625, "largest shift, of the side", at_least=0, at_most=0.5)
    mixup_alpha: float = option(0.2, "parameter of the Beta distribution of Mixup", above=0)
    deferred: float = option(
        0.2, "share of the steps, the last, in which mixup re-weights classes", at_least=0, at_most=1
    )
    late: float = option(
        0.3, "share of the steps, the last, in which `+late` sees real images only", at_least=0, at_most=1
    )
