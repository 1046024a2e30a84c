"""Several shards at once: one process a shard, each with the same fixed number of threads."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from rebalance.engines.work import Count, Work, Worker
from rebalance.errors import InputError, RebalanceError
from rebalance.runtime.devices import cpu_count
from rebalance.runtime.threads import torch_threads

MOST_WORKERS = 1024

# Items that are worth a process, which takes some seconds to start: small gray images are made a hundred a second, and
# judged ten a second.
_LEAST_ITEMS = 256
# How often the counts of the workers are shown.
_POLL_SECONDS = 0.25
# From <sys/prctl.h>: the signal that this process gets when its parent ends.
_PR_SET_PDEATHSIG = 1

Shard = TypeVar("Shard")


def check_workers(workers: int) -> None:
    """Check a number of worker processes.

    Raises:
        InputError: out of range.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError("`workers`", value=workers, allowed=f"0 to {MOST_WORKERS}")


def n_workers(workers: int, device: torch.device, n_shards: int, n_items: int) -> int:
    """Return how many processes make shards, at most one a shard.

    0 asks for one a CPU, or one on a GPU, as long as each has enough items to be worth its start.
    """
    if workers == 0:
        worth = max(1, n_items // _LEAST_ITEMS)
        workers = min(cpu_count(), worth) if device.type == "cpu" else 1
    return min(workers, n_shards)


def make_here(worker: Worker[Shard], shards: Sequence[Shard], threads: int, count: Count) -> None:
    """Make shards one after another in this process, with a number of CPU threads."""
    with torch_threads(threads):
        worker.make(shards, count)


def map_shards(
    work: Work[Shard], shards: Sequence[Shard], workers: int, threads: int, reasons: Sequence[str], count: Count
) -> None:
    """Make shards in processes of their own, each of which takes the next shard that nobody has begun.

    Args:
        work: what each process starts with.
        shards: what to make; they can be pickled.
        workers: processes.
        threads: CPU threads of each.
        reasons: names by which rejected items are counted.
        count: is told of finished items, and of rejected ones by reason, as they come.

    Raises:
        RebalanceError: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    counts, next_shard = context.Array("q", 1 + len(reasons)), context.Value("q", 0)
    task = _Task(work, tuple(shards), threads, tuple(reasons), os.getpid())
    executor = ProcessPoolExecutor(workers, context, _start_worker, (task, counts, next_shard))
    try:
        with _interrupts_held():
            waiting = {executor.submit(_make_shards) for _ in range(workers)}
        _report(waiting, counts, reasons, count)
    except BrokenProcessPool as error:
        raise RebalanceError(
            "a worker process died", remedy="Run the same command again, with fewer `workers` if memory was short"
        ) from error
    except BaseException:
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _report(waiting: set[Future[None]], counts: Any, reasons: Sequence[str], count: Count) -> None:
    """Pass on what the workers have counted until all have ended; raise the error of one that failed."""
    reported = [0] * (1 + len(reasons))
    while waiting:
        finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
        for future in finished:
            future.result()
        totals = counts[:]
        done, *rejects = (now - before for now, before in zip(totals, reported, strict=True))
        count(done, dict(zip(reasons, rejects, strict=True)))
        reported = totals


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, which processes started meanwhile inherit: a worker that still imports has no handler yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Task:
    """What every worker process is sent.

    Attributes:
        work: becomes its worker.
        shards: all shards.
        threads: its CPU threads.
        reasons: names by which rejected items are counted.
        parent: id of the main process.
    """

    work: Work[Any]
    shards: tuple[Any, ...]
    threads: int
    reasons: tuple[str, ...]
    parent: int


@dataclass(frozen=True)
class _Started:
    """A worker process's own state: its worker, and what it shares with the others."""

    task: _Task
    worker: Worker[Any]
    counts: Any
    next_shard: Any

    def shards(self) -> Iterator[Any]:
        """Yield shards that no other worker has taken."""
        while True:
            with self.next_shard.get_lock():
                number = self.next_shard.value
                self.next_shard.value += 1
            if number >= len(self.task.shards):
                return
            yield self.task.shards[number]

    def count(self, done: int, rejected: Mapping[str, int]) -> None:
        """Add to the counts of all workers."""
        with self.counts.get_lock():
            self.counts[0] += done
            for number, reason in enumerate(self.task.reasons, 1):
                self.counts[number] += rejected.get(reason, 0)


_started: list[_Started] = []
"""Set once in a worker process, because a pool hands nothing from its initializer to its tasks."""


def _start_worker(task: _Task, counts: Any, next_shard: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(task.parent)
    torch.set_num_threads(task.threads)
    threadpool_limits(task.threads, "blas")
    _started.append(_Started(task, task.work.start(), counts, next_shard))


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to end this worker when the main process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _make_shards() -> None:
    (started,) = _started
    started.worker.make(started.shards(), started.count)
