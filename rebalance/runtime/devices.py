"""Where computations run."""

from __future__ import annotations

import os

import torch

from rebalance.errors import InputError
from rebalance.runtime.ranks import n_local

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" stands for here, under `torchrun` a GPU a process; fp32 uses TF32.

    Raises:
        InputError: an unknown name, or "cuda" without a usable GPU.
    """
    if name not in DEVICES:
        raise InputError("`device` is unknown", value=name, allowed=", ".join(DEVICES))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("`device=cuda`: no usable GPU here", remedy="Use `device=cpu`, or install a driver")
    if name == "cpu" or not available:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise InputError(
            "a GPU for each process of torchrun is needed",
            value=n_local(),
            allowed=f"1 to {torch.cuda.device_count()}",
        )
    return prepared(torch.device("cuda", number))


def prepared(device: torch.device) -> torch.device:
    """Make this process compute on a device as every other does: fp32 on CUDA uses TF32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.cuda.set_device(device)
    return device


def without_waiting(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device; a copy to a GPU goes through page-locked memory and stops nobody."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cpu_count() -> int:
    """Return the number of CPUs that this process may use; processes that `torchrun` started share them evenly."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(available // n_local(), 1)
