"""The contract of a method: what it offers beyond being trainable."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from rebalance.config import Recipe
from rebalance.config.method import Inputs
from rebalance.errors import InputError
from rebalance.learning.sampling import StageTrainable

M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class TrainedStage:
    """A finished stage, as later ones see it.

    Attributes:
        labels: the modality id behind each of its translator classes.
        weights: every tensor of its last checkpoint, by the name that the checkpoint gives it.
    """

    labels: tuple[int, ...]
    weights: Mapping[str, torch.Tensor]

    def load(self, name: str, network: nn.Module) -> None:
        """Load a network of that name, its averaged weights where there are any.

        Raises:
            RuntimeError: the network has other parameters than the one that was trained.
        """
        for prefix in (f"averaged/{name}/", f"{name}/", f"frozen/{name}/"):
            tensors = {key.removeprefix(prefix): t for key, t in self.weights.items() if key.startswith(prefix)}
            if tensors:
                network.load_state_dict(tensors)
                return
        raise KeyError(f"the stage has no network {name!r}")


@dataclass(frozen=True)
class BuildContext:
    """Arguments from which a stage is built.

    Attributes:
        recipe: the recipe.
        stage: name of the stage, as in `MethodOptions.stages`.
        labels: the modality id behind each translator class.
        seed: seed of the initial weights.
        earlier: the finished stages by name; None where only the shapes matter, as for a forecast or before trained
            weights are loaded.
    """

    recipe: Recipe
    stage: str
    labels: tuple[int, ...]
    seed: int
    earlier: Mapping[str, TrainedStage] | None = None

    @property
    def n_classes(self) -> int:
        """Number of translator classes (modalities and targets)."""
        return len(self.labels)

    def load_earlier(self, stage: str, name: str, network: nn.Module) -> None:
        """Load a network with what an earlier stage has trained under a name."""
        if self.earlier is not None:
            self.earlier[stage].load(name, network)


@dataclass(frozen=True)
class Conditions:
    """Classes, and references or latents, of images to be made.

    Attributes:
        labels: (B,) int64, translator classes.
        references: (B, C, H, W) in [-1, 1], for methods that take references.
        latents: (B, latent_size) float32, standard normal, for methods that take latents.
    """

    labels: torch.Tensor
    references: torch.Tensor | None = None
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class TargetLabels:
    """The translator classes around a target, each with its number of train images.

    Attributes:
        own: those of the target itself; empty where it was left out of training.
        sources: those of its sources.
    """

    own: Mapping[int, int]
    sources: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelLaw:
    """From which translator classes a candidate without references draws its own.

    Attributes:
        labels: (n,) int64.
        probabilities: (n,) float64, summing to 1.
    """

    labels: np.ndarray
    probabilities: np.ndarray


class Method(StageTrainable):
    """A way to make images of a class."""

    inputs: Inputs = Inputs()
    """Inputs that a candidate is made of."""

    generating: tuple[str, ...]
    """Names of the networks, trained or frozen, that `codes`, `make` and `class_logits` use."""

    @abstractmethod
    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return one code (B, d) for each row of conditions.

        Codes of references are computed once an image and may be averaged; those of latents are not.
        """

    @abstractmethod
    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Make images (B, C, H, W) in [-1, 1] from codes (B, d) and, if the method takes them, sources alike."""

    @property
    def has_class_head(self) -> bool:
        """Return whether `class_logits` can be asked."""
        return False

    def class_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, translator classes) of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: the method has no class head.
        """
        raise ValueError("this method has no class head")

    def label_law(self, target: TargetLabels) -> LabelLaw:
        """Return from which labels candidates of a target draw: its own, in proportion to their images.

        Raises:
            ValueError: the target was left out of training, so the method must answer itself.
        """
        if not target.own:
            raise ValueError("a target that was left out of training has no labels to draw from")
        counts = np.array(list(target.own.values()), np.float64)
        return LabelLaw(np.array(list(target.own), np.int64), counts / counts.sum())

    def with_networks(self: M, networks: Mapping[str, nn.Module]) -> M:
        """Return this method over other weights, such as averaged ones; networks not given stay."""
        other = copy.copy(self)
        other.networks = {**self.networks, **networks}
        return other

    def module(self, name: str) -> nn.Module:
        """Return a network by its name, trained or frozen."""
        return self.networks[name] if name in self.networks else self.frozen[name]


def build_method(context: BuildContext) -> Method:
    """Build what the last stage trains, which makes the images.

    Raises:
        InputError: the recipe's method gives something else.
    """
    method = context.recipe.options.build(context)
    if not isinstance(method, Method):
        raise InputError(f"the last stage of {context.recipe.method} makes no images", value=type(method).__name__)
    return method


def make_method(recipe: Recipe, n_classes: int, *, seed: int) -> Method:
    """Build the recipe's method with freshly drawn weights, for `n_classes` translator classes."""
    stage = recipe.options.stages(recipe)[-1].name
    return build_method(BuildContext(recipe, stage, tuple(range(n_classes)), seed))
