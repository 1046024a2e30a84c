"""What an engine carries out: work that a process can be sent, and the worker that it becomes there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

Count = Callable[[int, Mapping[str, int]], None]
"""Is told, since it was last called, of how many items are finished, and of how many are rejected by reason."""

Shard_contra = TypeVar("Shard_contra", contravariant=True)


class Worker(Protocol[Shard_contra]):
    """Makes shards in one process."""

    def make(self, shards: Iterable[Shard_contra], count: Count) -> None:
        """Make shards one after another, and report what was done as it comes."""


class Work(Protocol[Shard_contra]):
    """What a process needs to make shards; it can be pickled and is small enough to be sent."""

    def start(self) -> Worker[Shard_contra]:
        """Load what the work needs, in the process that does it."""
