"""Batches that trainables are given: tensors by field, moved to a device together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import torch

B = TypeVar("B", bound="TensorBatch")


class Batch(Protocol):
    """Interface of a batch, as the loop uses it."""

    def __len__(self) -> int:
        """Return the number of rows of this process."""

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """Return the batch on a device, without waiting; images get the memory format."""

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""


BatchAt = Callable[[int], Batch]
"""Maps a step to this process's share of its batch, purely."""


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches whose fields are tensors with B rows, or None."""

    def _each(self: B, change: Callable[[torch.Tensor], torch.Tensor]) -> B:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: None if value is None else change(value) for name, value in values.items()})

    def to(self: B, device: torch.device, memory_format: torch.memory_format) -> B:
        """Return the batch on a device, without waiting; images (4 dimensions) get the memory format."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim == 4:
                return tensor.to(device, non_blocking=True, memory_format=memory_format)
            return tensor.to(device, non_blocking=True)

        return self._each(moved)

    def pin_memory(self: B) -> B:
        """Return the batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def rows(self: B, part: slice) -> B:
        """Return some rows of every field."""
        return self._each(lambda tensor: tensor[part])

    def __len__(self) -> int:
        """Return B."""
        return len(getattr(self, fields(self)[0].name))


@dataclass(frozen=True)
class ImageBatch(TensorBatch):
    """Images without labels.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1].
    """

    images: torch.Tensor


@dataclass(frozen=True)
class ClassBatch(TensorBatch):
    """Images with their translator classes.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1].
        labels: (B,) int64.
    """

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class PairBatch(TensorBatch):
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


@contextlib.contextmanager
def prefetched(batch_at: BatchAt, first: int, last: int, pin: bool) -> Iterator[Iterator[Batch]]:
    """Yield an iterator over batches first, first + 1, ... last - 1, each made on a thread while the former is used."""

    def make(step: int) -> Batch:
        batch = batch_at(step)
        return batch.pin_memory() if pin else batch

    def batches(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        waiting: list[Future[Batch]] = [pool.submit(make, step) for step in range(first, min(first + 2, last))]
        for step in range(first, last):
            batch = waiting.pop(0).result()
            if step + 2 < last:
                waiting.append(pool.submit(make, step + 2))
            yield batch

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        yield batches(pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
