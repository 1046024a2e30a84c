"""Carrying out a request: the shards that are missing are made, here or in processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from rebalance.engines.processes import make_here, map_shards, n_workers
from rebalance.engines.work import Work, Worker
from rebalance.filtering import check_names
from rebalance.runtime.progress import counting
from rebalance.shards.names import ShardName


class ShardWorker(Worker[ShardName], Protocol):
    """Makes shards of one output."""

    def n_images(self, name: ShardName) -> int:
        """Return how many images are counted for a shard."""


def make_shards(
    worker: ShardWorker,
    work: Work[ShardName],
    names: Sequence[ShardName],
    *,
    workers: int,
    threads: int,
    device: torch.device,
    title: str,
    progress: bool,
) -> None:
    """Make shards.

    Args:
        worker: makes them in this process.
        work: starts other processes.
        names: which shards.
        workers: processes; 0: one a CPU where there is work for it, or one on a GPU.
        threads: CPU threads of a process.
        device: where to compute.
        title: name of the progress bar.
        progress: show it on stderr.
    """
    if not names:
        return
    n_images = sum(map(worker.n_images, names))
    n_processes = n_workers(workers, device, len(names), n_images)
    with counting(title, n_images, check_names(), progress) as count:
        if n_processes == 1:
            make_here(worker, names, threads, count)
        else:
            map_shards(work, names, n_processes, threads, check_names(), count)
