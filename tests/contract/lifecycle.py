"""Fit and generate, as the tests of the lifecycle and their other processes call them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calls import generate
from cases import recipe_of

import rebalance
from rebalance.shards import GenerationResult
from rebalance.training import FitResult

BALANCE = {"poor": 11, "rare": 10}


def fit_case(case: str, data: Path, run: Path, **sections: Mapping[str, object]) -> FitResult:
    """Fit a case on its tiny recipe."""
    return rebalance.fit(data, run, recipe_of(case, **sections), balance=BALANCE, device="cpu")


def generate_case(run: Path, out: Path, workers: int = 1) -> GenerationResult:
    """Make a run's images in shards of four."""
    output = rebalance.OutputOptions(shard_size=4, file_format="png")
    return generate(run, out, output, workers)
