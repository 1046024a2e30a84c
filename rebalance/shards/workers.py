"""Several shards at once: one process a shard, each with the same fixed number of threads."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from rebalance.devices import prepared
from rebalance.errors import RebalanceError
from rebalance.features import FeatureExtractor, choose_extractor
from rebalance.filtering import CHECKS, ImageFilter, Yardstick
from rebalance.generation import LoadedRun, load_run
from rebalance.shards.make import Count, ShardMaker, ShardName
from rebalance.shards.request import GenerationRequest
from rebalance.training import RunDirectory, load_encoder

_POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Look:
    """In which features images are judged: the recipe's, or what a caller names instead.

    Attributes:
        features: name or import path; None: the recipe's.
        weights: Inception weights; None: the recipe's.
    """

    features: str | None
    weights: str | None

    def extractor(self, run: LoadedRun, device: torch.device) -> FeatureExtractor:
        """Build the extractor."""
        options = run.recipe.features
        if self.weights:
            options = replace(options, weights=self.weights)
        return choose_extractor(self.features, options, device, lambda: load_encoder(run.directory, run.recipe, device))


@dataclass(frozen=True)
class Job:
    """What a worker process needs to make shards; small enough to be sent."""

    run: Path
    data: str
    request: GenerationRequest
    filters: Mapping[str, ImageFilter]
    yardsticks: Mapping[str, Yardstick]
    look: Look
    out: Path
    device: str

    def maker(self) -> ShardMaker:
        """Load the run and build the maker."""
        device = prepared(torch.device(self.device))
        run = load_run(RunDirectory(self.run), self.data, device)
        extractor = self.look.extractor(run, device) if self.yardsticks else None
        return ShardMaker(run, self.request, self.filters, self.yardsticks, extractor, self.out, device)


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Use this many CPU threads in torch, and in numpy's products, while the context lasts.

    A product of few rows has other last digits on other numbers of threads, and threads that wait for each other cost
    many times what it takes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def make_here(maker: ShardMaker, names: Sequence[ShardName], count: Count) -> None:
    """Make shards one after another in this process."""
    with torch_threads(maker.run.recipe.generation.threads):
        maker.make(names, count)


def make_in_processes(job: Job, names: Sequence[ShardName], workers: int, threads: int, count: Count) -> None:
    """Make shards in worker processes, each of which takes the next one that nobody has begun.

    Raises:
        RebalanceError: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    done, begun = context.Array("q", 1 + len(CHECKS)), context.Value("q", 0)
    setting = (job, tuple(names), begun, threads, done, os.getpid())
    executor = ProcessPoolExecutor(workers, context, _start_worker, setting)
    try:
        with _interrupts_held():
            waiting, counted = {executor.submit(_make_shards) for _ in range(workers)}, [0] * len(done)
        while waiting:
            finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            images, *rejects = (now - before for now, before in zip(done[:], counted, strict=True))
            count(images, dict(zip(CHECKS, rejects, strict=True)))
            counted = [before + new for before, new in zip(counted, (images, *rejects), strict=True)]
    except BrokenProcessPool as error:
        raise RebalanceError(
            "a worker process died", remedy="Run the same command again, with fewer --workers if memory was short"
        ) from error
    except BaseException:
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, which processes started meanwhile inherit: a worker that still imports has no handler yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}


def _start_worker(job: Job, names: Sequence[ShardName], begun: Any, threads: int, done: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(parent)
    torch.set_num_threads(threads)
    threadpool_limits(threads, "blas")
    _worker.update(maker=job.maker(), names=names, begun=begun, done=done)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to end this worker when the main process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _make_shards() -> None:
    def count(images: int, rejected: Mapping[str, int]) -> None:
        done = _worker["done"]
        with done.get_lock():
            done[0] += images
            for number, check in enumerate(CHECKS, 1):
                done[number] += rejected.get(check, 0)

    _worker["maker"].make(_next_names(), count)


def _next_names() -> Iterator[ShardName]:
    """Yield names that no other worker has taken."""
    names, begun = _worker["names"], _worker["begun"]
    while True:
        with begun.get_lock():
            number = begun.value
            begun.value += 1
        if number >= len(names):
            return
        yield names[number]
