"""Sections of a recipe that belong to no method: data, features, plan, training, modalities, generation, filtering."""

from __future__ import annotations

from dataclasses import dataclass

from rebalance.config.options import Options, option

SQUARES = ("crop", "pad", "squash")
EXTRACTORS = ("efficientnet", "inception")
AUGMENTATIONS = ("crop", "flip", "colour_jitter", "grayscale", "blur", "patch_shuffle")


@dataclass(frozen=True)
class DataOptions(Options):
    """How images are brought to the model."""

    size_px: int = option(64, "side of the model's square image, in pixels", at_least=8, at_most=2048)
    channels: int = option(3, "1 for gray, 3 for RGB", choices=(1, 3))
    square: str = option("crop", "how other shapes become square, for real and synthetic alike", choices=SQUARES)
    val_fraction: float = option(0.1, "share of train held out when the data has no val split", at_least=0, at_most=0.5)
    sublabel_column: str = option("", "manifest column with sub-labels of the images (modalities.by: column)")
    memory_gib: float = option(4.0, "decoded images stay in memory up to this, else in a mapped file", at_least=0)


@dataclass(frozen=True)
class FeatureOptions(Options):
    """The features in which distances between classes and sets are measured."""

    extractor: str = option("efficientnet", "network", choices=EXTRACTORS)
    input_px: int = option(224, "side to which images are resized for efficientnet", at_least=32, at_most=600)
    layer: int | None = option(
        None, "block of efficientnet whose pooled output is taken; empty: the last features", at_least=0, at_most=15
    )
    batch: int = option(64, "images a forward pass", at_least=1)
    weights: str = option("", "file with the Inception weights; empty: clean-fid's cache")


@dataclass(frozen=True)
class PlanOptions(Options):
    """Which classes serve which."""

    n_sources: int = option(3, "source classes of a target, the nearest first", at_least=1)
    max_distance_ratio: float | None = option(
        None, "a source is at most this many times as far from the target as the nearest one; empty: any", at_least=1
    )
    source_ratio: float = option(2.0, "a source has at least this many times the target's images", at_least=1)
    feature_images: int = option(200, "images of a class that its distances are measured on", at_least=2)


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """The optimiser; learning rates belong to the method, network by network."""

    name: str = option("rmsprop", "rmsprop (as released) or adam", choices=("rmsprop", "adam"))
    beta1: float = option(0.0, "Adam's first momentum", at_least=0, at_most=0.999)
    beta2: float = option(0.99, "Adam's second momentum, and RMSprop's smoothing", at_least=0, at_most=0.9999)
    weight_decay: float = option(1e-4, "L2 penalty", at_least=0)


@dataclass(frozen=True)
class TrainingOptions(Options):
    """The training loop."""

    batch: int = option(3, "pairs a step", at_least=1)
    steps: int = option(100_000, "steps", at_least=1)
    optimizer: OptimizerOptions = option(OptimizerOptions, "optimiser")
    ema: float = option(0.999, "decay of the averaged weights", at_least=0, at_most=0.99999)
    lr_decay: float = option(
        0.0, "share of the steps, the last, over which learning rates fall linearly to 0", at_least=0, at_most=1
    )
    regularize_every_steps: int = option(1, "lazy R1: every so many steps, weighted by as much", at_least=1)
    models: str = option(
        "joint", "one model for all targets, or one a target (the paper's)", choices=("joint", "per-class")
    )
    draw: str = option(
        "classes",
        "what is drawn uniformly: data-set classes, or modalities (the paper's)",
        choices=("classes", "modalities"),
    )
    pairs: str = option(
        "related", "source and reference from related classes, or from all (the paper's)", choices=("related", "all")
    )
    precision: str = option("auto", "arithmetic; auto times them once", choices=("auto", "fp32", "bf16"))
    memory_format: str = option("auto", "layout; auto times them once", choices=("auto", "contiguous", "channels_last"))
    threads: int = option(0, "CPU threads; 0: one or all cores, timed once", at_least=0, at_most=1024)
    log_every_steps: int = option(20, "TensorBoard scalars", at_least=1)
    preview_every_steps: int = option(1000, "preview grid and source dependence", at_least=1)
    checkpoint_every_steps: int = option(500, "checkpoints; the last two are kept", at_least=1)
    min_source_dependence: float = option(0.2, "below this, a warning that sources are ignored", at_least=0)


@dataclass(frozen=True)
class EncoderOptions(Options):
    """The modality encoder."""

    width: int = option(64, "channels of the first stage", at_least=1)
    blocks: tuple[int, ...] = option((2, 2, 2, 2), "residual blocks of each stage (ResNet-18: 2, 2, 2, 2)", at_least=1)
    stem: str = option("large", "large: 7x7 stride 2 and pooling; small: 3x3", choices=("large", "small"))
    projection: int = option(256, "length of the vector that NT-Xent compares", at_least=2)
    temperature: float = option(0.5, "NT-Xent temperature", above=0)
    batch: int = option(256, "images a step, two views each", at_least=2)
    steps: int = option(4000, "steps", at_least=1)
    lr: float = option(3e-4, "Adam learning rate", above=0)
    augmentations: tuple[str, ...] = option(
        AUGMENTATIONS[:5], "distortions of content that keep style", choices=AUGMENTATIONS
    )
    precision: str = option("auto", "arithmetic; auto times them once", choices=("auto", "fp32", "bf16"))
    memory_format: str = option("auto", "layout; auto times them once", choices=("auto", "contiguous", "channels_last"))
    latent: int = option(64, "latent size of the VAE (modalities.by: vae)", at_least=2)
    kl_weight: float = option(1.0, "weight of the VAE's KL term", at_least=0)


@dataclass(frozen=True)
class ModalityOptions(Options):
    """How rich classes are split into modalities."""

    by: str = option(
        "contrastive",
        "embedding that is clustered; column: a manifest column of sub-labels; none: one modality a class",
        choices=("contrastive", "vae", "column", "none"),
    )
    k: int | None = option(None, "modalities of every source class; empty: by the plan's rule", at_least=1)
    k_max: int = option(40, "most modalities of a class", at_least=1)
    min_images: int = option(32, "average images of a modality, at least", at_least=1)
    split_targets: bool = option(False, "balanced setting: targets are split too")
    k_target: int | None = option(None, "modalities of a target when split; empty: by the rule", at_least=1)
    encoder: EncoderOptions = option(EncoderOptions, "encoder")


@dataclass(frozen=True)
class GenerationOptions(Options):
    """How candidates are made."""

    n_references: int = option(1, "references whose mean style code is used (k-shot)", at_least=1)
    max_candidates: int = option(20, "candidates of a slot before it counts as a shortfall", at_least=1)
    batch: int = option(32, "images a forward pass, padded to this shape", at_least=1)
    threads: int = option(1, "CPU threads of a process; part of the fingerprint", at_least=1, at_most=1024)


DEFAULT_CHECKS = ("outlier", "low_confidence", "memorised", "influence")
"""The checks that are asked unless a recipe names others; any that is registered may be named."""


@dataclass(frozen=True)
class FilteringOptions(Options):
    """Which checks an image must pass, and how a class is calibrated before the first shard."""

    checks: tuple[str, ...] = option(
        DEFAULT_CHECKS, "what an image is checked for, see `rebalance.filtering`; empty keeps every image"
    )
    pool_images: int = option(512, "candidates of a class in its calibration pool", at_least=8)
    dimensions: int = option(64, "principal components of the real features in which FD is taken, at most", at_least=1)
    floor_draws: int = option(20, "pairs of Gaussian sets behind the floor of FD", at_least=2)

    def __post_init__(self) -> None:
        """Check every range, and that the checks are registered ones."""
        super().__post_init__()
        if set(self.checks) <= set(DEFAULT_CHECKS):
            return  # a recipe loads without torch, which the checks need
        from rebalance.filtering.checks import check_named  # filtering stands above this package

        for name in self.checks:
            check_named(name)
