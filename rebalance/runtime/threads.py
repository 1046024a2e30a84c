"""CPU threads of torch and numpy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from threadpoolctl import threadpool_limits


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
