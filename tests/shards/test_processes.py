"""How many processes make shards."""

import pytest
import torch

from rebalance.engines import processes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MANY = 100 * processes._LEAST_ITEMS


@pytest.mark.parametrize(
    ("workers", "device", "n_shards", "n_items", "expected"),
    [
        (0, CPU, 100, MANY, 8),
        (0, CPU, 3, MANY, 3),
        (0, CPU, 100, 2 * processes._LEAST_ITEMS, 2),
        (0, CPU, 100, 1, 1),
        (0, GPU, 100, MANY, 1),
        (5, CPU, 100, 1, 5),
        (5, CPU, 2, MANY, 2),
    ],
)
def test_processes_are_started_where_there_is_work(monkeypatch, workers, device, n_shards, n_items, expected):
    monkeypatch.setattr(processes, "cpu_count", lambda: 8)
    assert processes.n_workers(workers, device, n_shards, n_items) == expected
