"""What every method offers beyond being trainable."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import nn

from rebalance.config import Recipe
from rebalance.trainable import Trainable


@dataclass(frozen=True)
class PairBatch:
    """Source and reference images with their translator classes.

    Attributes:
        source: (B, C, H, W) float32 in [-1, 1].
        source_label: (B,) int64.
        reference: (B, C, H, W) float32 in [-1, 1].
        reference_label: (B,) int64.
    """

    source: torch.Tensor
    source_label: torch.Tensor
    reference: torch.Tensor
    reference_label: torch.Tensor

    def to(self, device: torch.device, memory_format: torch.memory_format) -> PairBatch:
        """Return the batch on a device, without waiting; images get the memory format."""
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor.ndim == 4:
                moved[field.name] = tensor.to(device, non_blocking=True, memory_format=memory_format)
            else:
                moved[field.name] = tensor.to(device, non_blocking=True)
        return PairBatch(**moved)

    def __len__(self) -> int:
        """Return B."""
        return len(self.source)

    def pin_memory(self) -> PairBatch:
        """Return the batch in page-locked memory."""
        return PairBatch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


@dataclass(frozen=True)
class Needs:
    """What a method must be given."""

    modalities: bool = True
    source_images: bool = True
    references: bool = True


class Method(Trainable):
    """A way to make images of a class."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    generating: ClassVar[tuple[str, ...]]
    """Names of the networks that `synthesize` and `class_logits` use."""

    @property
    def pairs_per_class(self) -> int:
        """Consecutive pairs of a batch whose references must be of one class."""
        return 1

    @classmethod
    @abstractmethod
    def build(cls, recipe: Recipe, n_classes: int, seed: int) -> Method:
        """Build the method from a recipe with weights drawn from `seed`."""

    @abstractmethod
    def reference_codes(self, references: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return one code (B, d) for each reference image (B, C, H, W) in [-1, 1] of translator classes (B,) int64."""

    @abstractmethod
    def synthesize(self, sources: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Make images (B, C, H, W) in [-1, 1] from sources of the same shape and codes (B, d)."""

    @property
    @abstractmethod
    def has_class_head(self) -> bool:
        """Whether `class_logits` can be asked."""

    @abstractmethod
    def class_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, translator classes) of images (B, C, H, W) in [-1, 1]."""

    def with_networks(self, networks: Mapping[str, nn.Module]) -> Method:
        """Return this method over other weights, such as averaged ones; networks not given stay."""
        other = copy.copy(self)
        other.networks = {**self.networks, **networks}
        return other
