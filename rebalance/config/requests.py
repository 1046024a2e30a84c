"""Option objects of the public functions: the output, the filter, the features, a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebalance.config.sections import SQUARES
from rebalance.errors import InputError

FORMATS = ("jpg", "png", "webp")
_MAX_SHARD_SIZE = 10_000_000  # far beyond any shard in use: it stops a mistyped number
_MAX_SEED = 2**63 - 1  # what numpy's seeds and JSON readers take

DEFAULT_MULTIPLES = ("1", "2", "5", "10", "full")


@dataclass(frozen=True)
class OutputOptions:
    """Settings of an output.

    Attributes:
        shard_size: images of a shard; for `filter`, images that a shard is made of.
        file_format: "jpg", "png" or "webp"; `filter` keeps the images' own where they all have one.
        quality: 1 to 100, of jpg and webp.
        seed: seed of all draws.
        include_real: add the real train images of all classes, resized and encoded alike (`generate` only).
        shards: make only shards A to B - 1, as for a scheduler (`generate` only).
        square: how images of other shapes become square (`filter` only); None: as the run did, else "crop".
    """

    shard_size: int = 1000
    file_format: str = "jpg"
    quality: int = 95
    seed: int = 0
    include_real: bool = False
    shards: tuple[int, int] | None = None
    square: str | None = None

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            InputError: naming the parameter.
        """
        if self.file_format not in FORMATS:
            raise InputError("`file_format` is unknown", value=self.file_format, allowed=", ".join(FORMATS))
        _check_square(self.square)
        _check_range("shard_size", self.shard_size, 1, _MAX_SHARD_SIZE)
        _check_range("quality", self.quality, 1, 100)
        _check_range("seed", self.seed, 0, _MAX_SEED)


@dataclass(frozen=True)
class FeatureChoice:
    """The features in which images are compared.

    Attributes:
        name: "efficientnet", "inception", "encoder" (of `run`) or "module:attribute"; None: those of the run that made
            the images, else efficientnet.
        run: run directory whose encoder is asked.
        weights: file with the Inception weights; None: clean-fid's cache.
        input_px: side to which images are resized for efficientnet; None: the run's, else 224.
    """

    name: str | None = None
    run: str | Path | None = None
    weights: str | Path | None = None
    input_px: int | None = None


@dataclass(frozen=True)
class FilterChoice:
    """Limits that images and classes must pass; None leaves a limit to the calibration.

    Attributes:
        filter_images: ask the checks that the recipe names; False: only those whose limit is given here.
        keep: share of the pool, after the other checks, whose influence is allowed.
        min_confidence: least probability of its class that an image must have.
        max_similarity: largest cosine to a real train image.
        max_fid: limit on each class's Fréchet distance, absolute or a multiple of its floor ("3x").
        max_kid: limit on each class's kernel distance, likewise.
        pool: images of a class that the filter is calibrated on, at most; None: the recipe's number.
        features: in which images are judged.
    """

    filter_images: bool = True
    keep: float | None = None
    min_confidence: float | None = None
    max_similarity: float | None = None
    max_fid: str | float | None = None
    max_kid: str | float | None = None
    pool: int | None = None
    features: FeatureChoice = FeatureChoice()


@dataclass(frozen=True)
class StudyOptions:
    """Arms that a downstream study compares.

    Attributes:
        arms: arms such as "oversampling+augment+filtered+x5+share=0.3", see `rebalance.trials.arms`; None: every cheap
            remedy, and filtered and unfiltered images on top of the best one.
        multiples: synthetic images of a class, times its real ones; "full" is all there are.
        seeds: how often every arm is trained, with other weights and draws.
        square: how real images become square; None: as the output's, else "crop".
    """

    arms: Sequence[str] | None = None
    multiples: Sequence[str | float] = DEFAULT_MULTIPLES
    seeds: int = 3
    square: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a study.

        Raises:
            InputError: naming the parameter.
        """
        _check_square(self.square)
        if self.seeds < 1:
            raise InputError("`seeds`", value=self.seeds, allowed="1 or more")


def _check_square(square: str | None) -> None:
    if square is not None and square not in SQUARES:
        raise InputError("`square` is unknown", value=square, allowed=", ".join(SQUARES))


def _check_range(name: str, value: int, minimum: int, maximum: int) -> None:
    if not minimum <= value <= maximum:
        raise InputError(f"`{name}`", value=value, allowed=f"{minimum} to {maximum}")
