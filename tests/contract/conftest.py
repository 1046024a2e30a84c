"""The toy methods, known to this process and to those that it starts."""

import os
import sys
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toy_methods"
sys.path.insert(0, str(TOYS))

import toy_directed  # noqa: E402, F401
import toy_label  # noqa: E402, F401
import toy_noise  # noqa: E402, F401
import toy_transfer  # noqa: E402, F401
import toy_translator  # noqa: E402, F401
import toy_wrapper  # noqa: E402, F401

MODULES = ("toy_directed", "toy_label", "toy_noise", "toy_transfer", "toy_translator", "toy_wrapper")


@pytest.fixture(scope="package", autouse=True)
def _toys_in_other_processes():
    """Let workers and processes of `torchrun` find the toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBALANCE_METHODS", ",".join(MODULES))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TOYS), os.environ.get("PYTHONPATH")])))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """Run torch on one thread: tiny networks are slower on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
