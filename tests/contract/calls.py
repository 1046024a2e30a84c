"""Calls of what is not public, in one place."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import torch

from rebalance import OutputOptions, shards
from rebalance.index import build_index
from rebalance.shards.records import read_manifest
from rebalance.storage import sha256_file
from rebalance.trials.held_out import HeldOut
from rebalance.trials.material import Material, MaterialLoader


def generate(run: Path, out: Path, output: OutputOptions, workers: int = 1) -> shards.GenerationResult:
    """Make a run's images on the CPU."""
    return shards.generate(run, out, output=output, workers=workers, device="cpu")


def sample_fields(out: Path) -> list[dict[str, Any]]:
    """Return what the JSON of each synthetic image says, in the order of the shards."""
    fields = []
    for path in sorted(out.glob("synthetic-*.tar")):
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".json")]
            fields += [json.load(archive.extractfile(member)) for member in members]
    return fields


def hashes_of(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an output."""
    return {path.name: sha256_file(path) for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def material_of(data: Path, out: Path, val_fraction: float) -> Material:
    """Return the images of a study of an output on a data set without a val split."""
    held_out = HeldOut(build_index(data), val_fraction, 0)
    loader = MaterialLoader(
        held_out, out, read_manifest(out), None, None, out, None, torch.device("cpu"), progress=False
    )
    return loader.material(())
