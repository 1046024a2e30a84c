"""Checkpoints: weights and optimiser state as safetensors, step and hashes as JSON; nothing is unpickled."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from rebalance import files
from rebalance.errors import DamagedError
from rebalance.training.logs import TrainingLog

KEPT = 2
_FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds. Random draws need no state: each is a function of (seed, step)."""

    step: int
    networks: Mapping[str, nn.Module]
    averages: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]


class CheckpointFolder:
    """The checkpoints of one model; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the checkpoints, the oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name))

    def steps(self) -> tuple[int, ...]:
        """Return the steps of the checkpoints, ascending."""
        return tuple(int(path.name.removeprefix("step-")) for path in self.paths())

    def last_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without any."""
        return max(self.steps(), default=0)

    def save(self, state: TrainerState, log: TrainingLog) -> None:
        """Write a checkpoint in one piece and drop all but the last two."""
        path = self.folder / f"step-{state.step:08d}"
        if path.exists():
            return
        logs = log.mark()
        with files.atomic_directory(path) as temporary:
            # Through Python, whose errors name a full disk as such.
            (temporary / _FILES[0]).write_bytes(save(_weights(state)))
            (temporary / _FILES[1]).write_bytes(save(_optimizer_tensors(state.optimizers)))
            hashes = {name: files.sha256_file(temporary / name) for name in _FILES}
            values = {"step": state.step, "sha256": hashes, "logs": logs, "scalars": log.latest}
            files.write_sealed_json(temporary / "state.json", values)
        for old in self.paths()[:-KEPT]:
            shutil.rmtree(old)

    def restore(self, state: TrainerState, log: TrainingLog) -> int:
        """Load the newest intact checkpoint in place and cut the log back; return the step, 0 without any.

        A damaged checkpoint is passed over with a warning that names it, and removed.

        Raises:
            DamagedError: there are checkpoints, but none is intact.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                values = _load(path, state)
            except DamagedError as error:
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=2)
                continue
            log.cut_back(values["logs"])
            log.latest = dict(values["scalars"])
            for damaged in paths[paths.index(path) + 1 :]:
                shutil.rmtree(damaged)
            self._warn_of_older(paths[: paths.index(path)])
            return int(values["step"])
        if paths:
            raise DamagedError(f"no intact checkpoint in {self.folder}", remedy="Start again with --overwrite")
        log.cut_back({})
        return 0

    def follow(self, state: TrainerState) -> int:
        """Load in place what another process has just restored; return the step, 0 without any."""
        paths = self.paths()
        return int(_load(paths[-1], state)["step"]) if paths else 0

    def _warn_of_older(self, paths: list[Path]) -> None:
        """Say that a checkpoint which is not needed now could not be fallen back to."""
        for path in paths:
            try:
                read_state(path)
            except DamagedError as error:
                warnings.warn(f"{error} A later checkpoint is intact and used.", stacklevel=3)

    def generating_weights(self) -> tuple[dict[str, torch.Tensor], str]:
        """Return the weights of the newest checkpoint, and their SHA-256.

        Raises:
            DamagedError: missing or damaged.
        """
        paths = self.paths()
        if not paths:
            raise DamagedError(f"no checkpoint in {self.folder}")
        try:
            values = read_state(paths[-1])
        except DamagedError as error:
            raise DamagedError(
                str(error), remedy="Run the same `rebalance fit` again, which makes it anew from the one before"
            ) from error
        return load_file(paths[-1] / _FILES[0]), values["sha256"][_FILES[0]]

    def problems(self, log: TrainingLog) -> list[files.Problem]:
        """Hold every checkpoint against its hashes, and the log against what the newest intact one knows of it."""
        found, mark = [], {}
        for path in self.paths():
            try:
                mark = read_state(path)["logs"]
            except DamagedError as error:
                found.append(files.Problem(str(path), str(error)))
        return found + log.problems(mark)


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's `state.json` after checking every file against its hash.

    Raises:
        DamagedError: naming the file.
    """
    values = files.read_sealed_json(path / "state.json")
    for name in _FILES:
        if not (path / name).is_file():
            raise DamagedError(f"{path / name} is missing")
        if files.sha256_file(path / name) != values.get("sha256", {}).get(name):
            raise DamagedError(f"{path / name} is damaged")
    return values


def load_network(network: nn.Module, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load the tensors below `prefix` into a network."""
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    network.load_state_dict(state)


def _load(path: Path, state: TrainerState) -> dict[str, Any]:
    """Load a checkpoint in place after checking it; return its `state.json`."""
    values = read_state(path)
    weights = load_file(path / _FILES[0])
    for prefix, networks in (("", state.networks), ("averaged/", state.averages)):
        for name, network in networks.items():
            load_network(network, weights, f"{prefix}{name}/")
    _load_optimizers(state.optimizers, load_file(path / _FILES[1]))
    return values


def _weights(state: TrainerState) -> dict[str, torch.Tensor]:
    tensors = {}
    for prefix, networks in (("", state.networks), ("averaged/", state.averages)):
        for name, network in networks.items():
            for key, tensor in network.state_dict().items():
                tensors[f"{prefix}{name}/{key}"] = tensor.detach().cpu().contiguous()
    return tensors


def _optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    tensors = {}
    for phase, optimizer in optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            for key, tensor in values.items():
                tensors[f"{phase}/{number}/{key}"] = torch.as_tensor(tensor).detach().cpu().contiguous()
    return tensors


def _load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]) -> None:
    for phase, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            owner, number, key = name.split("/")
            if owner == phase:
                like = parameters[int(number)]
                # The parameter's own layout, so that fused updates walk both in the same order.
                same = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                state.setdefault(int(number), {})[key] = same
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
