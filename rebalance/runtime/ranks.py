"""Processes that train or generate together, as `torchrun` starts them: who is who, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from rebalance.errors import InputError, PeerError, RebalanceError

_Result = TypeVar("_Result")
# The others wait while the first indexes and clusters; torchrun ends them when it dies.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together; alone by default, and then nothing here costs anything.

    Attributes:
        number: this process's, from 0.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this process is the one that decides, writes and speaks."""
        return self.number == 0

    def share_of(self, n: int, what: str, multiple: int = 1) -> slice:
        """Return which of `n` rows are this process's.

        Args:
            n: rows of all processes.
            what: name of n, for the message.
            multiple: a process's rows must be a multiple of it.

        Raises:
            InputError: n cannot be shared out evenly.
        """
        if n % (self.count * multiple):
            raise InputError(
                f"{what} with {self.count} processes",
                value=n,
                allowed=f"multiples of {self.count * multiple}",
                remedy="Change it, or the number of processes",
            )
        own = n // self.count
        return slice(self.number * own, (self.number + 1) * own)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, without gradients."""
        if self.count > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one type by their means over all processes, in one exchange."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.total(torch.tensor(float(flag)))) if self.count > 1 else flag

    def agree(self, number: int) -> bool:
        """Return whether all processes have the same number, below 2^32."""
        sums = self.total(torch.tensor([number, number**2 % 2**32]))
        same = bool((sums == self.count * torch.tensor([number, number**2 % 2**32])).all())
        return not self.any(not same)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.any(False)

    def first_does(self, work: Callable[[], _Result]) -> _Result | None:
        """Let the first process do something while the others wait; return its result there, None in the others.

        Raises:
            PeerError: in the others, when it failed.
        """
        if self.count == 1:
            return work()
        if not self.first:
            received = torch.zeros((), dtype=torch.int64)
            dist.broadcast(received, 0)
            if received:
                raise PeerError(int(received))
            return None
        code = 1
        try:
            result = work()
            code = 0
            return result
        except RebalanceError as error:
            code = error.exit_code
            raise
        finally:
            dist.broadcast(torch.tensor(code), 0)


def launched() -> Ranks:
    """Return this process's place as the environment tells it, before anything is joined."""
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    if not dist.is_torchelastic_launched():
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def n_local() -> int:
    """Return how many of the processes run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


@contextlib.contextmanager
def connected(device: torch.device) -> Iterator[Ranks]:
    """Connect the processes that `torchrun` started, NCCL between GPUs and gloo between CPUs; alone, do nothing.

    A process group that the caller has made is used as it is, and must have gloo for CPU tensors.
    """
    ranks = launched()
    if ranks.count == 1 or dist.is_initialized():
        yield ranks
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
