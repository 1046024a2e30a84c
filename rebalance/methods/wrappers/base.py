"""The base of all wrappers: options that name another method, and a method that delegates to it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from rebalance.config import TrainingOptions
from rebalance.config.method import Inputs, MethodOptions, StagePlan
from rebalance.config.options import required
from rebalance.learning.batches import BatchAt
from rebalance.learning.sampling import StageTrainable, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, LabelLaw, Method, TargetLabels
from rebalance.runtime.ranks import Ranks

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe

W = TypeVar("W", bound="Wrapper")


@dataclass(frozen=True)
class WrapperOptions(MethodOptions):
    """Base of the options of every wrapper; all questions go to the wrapped method's options."""

    inner: MethodOptions = required("the wrapped method: the key `method` names it, the others are its options")

    def check(self, recipe: Recipe) -> None:
        """Check the wrapped method's options against the recipe."""
        self.inner.check(recipe)

    @property
    def inputs(self) -> Inputs:
        """Return the inputs of the wrapped method."""
        return self.inner.inputs

    @property
    def needs_rich_class(self) -> bool:
        """Return the wrapped method's answer."""
        return self.inner.needs_rich_class

    @property
    def trains_on_targets(self) -> bool:
        """Return the wrapped method's answer."""
        return self.inner.trains_on_targets

    @property
    def batch_parts(self) -> int:
        """Return the wrapped method's number."""
        return self.inner.batch_parts

    @property
    def batch_multiple(self) -> int:
        """Return the wrapped method's number."""
        return self.inner.batch_multiple

    def stages(self, recipe: Recipe) -> tuple[StagePlan, ...]:
        """Return the wrapped method's stages; a wrapper may put stages of its own before them."""
        return self.inner.stages(recipe)

    def build(self, context: BuildContext) -> StageTrainable:
        """Build a stage of the wrapped method; wrap it where it makes images."""
        trainable = self.inner.build(context)
        return self.wrap(trainable, context) if isinstance(trainable, Method) else trainable

    @abstractmethod
    def wrap(self, inner: Method, context: BuildContext) -> Wrapper:
        """Return the wrapper around a method."""


class Wrapper(Method):
    """A method that adds a term to every phase of another one that makes translations.

    Everything else is the wrapped method's. With a weight of 0 its weights are bit for bit those of the method alone.

    Args:
        inner: the wrapped method.
        weight: weight of the term.
        frozen: networks that the term asks and nothing trains.
    """

    term_name: str
    """Name of the term in logs."""

    def __init__(self, inner: Method, weight: float, frozen: Mapping[str, nn.Module]) -> None:
        self.inner, self.weight = inner, weight
        self.networks, self.frozen = inner.networks, {**inner.frozen, **frozen}
        self.saved_frozen, self.averaged = inner.saved_frozen, inner.averaged
        self.inputs, self.generating = inner.inputs, inner.generating

    @abstractmethod
    def term(self, batch: Any, translations: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Return the term, a scalar; row i of the translations was made of the batch's source i."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the wrapped method's phases."""
        return self.inner.phases

    @property
    def optimizers(self) -> Mapping[str, NetworkOptimizer]:
        """Return the wrapped method's optimisers."""
        return self.inner.optimizers

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> BatchAt:
        """Return the wrapped method's sampler."""
        return self.inner.sampler(pools, options, seed, ranks)

    def forward(self, batch: Any, context: StepContext) -> Any:
        """Compute what the wrapped method's phases share."""
        return self.inner.forward(batch, context)

    def loss(self, phase: str, batch: Any, outputs: Any, context: StepContext) -> Loss:
        """Return the wrapped method's loss, with the term where it made translations."""
        loss = self.inner.loss(phase, batch, outputs, context)
        if loss.translations is None or not self.weight:
            return loss
        term = self.term(batch, loss.translations, context)
        return replace(loss, total=loss.total + self.weight * term, terms={**loss.terms, self.term_name: term})

    def codes(self, conditions: Conditions) -> torch.Tensor:
        """Return the wrapped method's codes."""
        return self.inner.codes(conditions)

    def make(self, sources: torch.Tensor | None, codes: torch.Tensor) -> torch.Tensor:
        """Make images with the wrapped method."""
        return self.inner.make(sources, codes)

    @property
    def has_class_head(self) -> bool:
        """Return whether the wrapped method has one."""
        return self.inner.has_class_head

    def class_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the wrapped method's logits."""
        return self.inner.class_logits(images)

    def label_law(self, target: TargetLabels) -> LabelLaw:
        """Return the wrapped method's law."""
        return self.inner.label_law(target)

    def with_networks(self: W, networks: Mapping[str, nn.Module]) -> W:
        """Return this wrapper around the method over other weights."""
        other = copy.copy(self)
        other.inner = self.inner.with_networks(networks)
        other.networks = other.inner.networks
        return other
