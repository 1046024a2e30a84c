"""Checkpoints: weights and optimiser state as safetensors, step and hashes as JSON; nothing is unpickled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from rebalance import storage
from rebalance.errors import DamagedError
from rebalance.learning.logs import TrainingLog

KEPT = 2
_FILES = ("weights.safetensors", "optimizer.safetensors")
_FORMAT = 2


@dataclass(frozen=True)
class TrainerState:
    """Contents of a checkpoint. Random draws need no state: each is a function of (seed, step)."""

    step: int
    networks: Mapping[str, nn.Module]
    averages: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Return every network with the prefix of its tensors' names."""
        kinds = (("", self.networks), ("averaged/", self.averages), ("frozen/", self.frozen))
        return [(f"{prefix}{name}/", network) for prefix, networks in kinds for name, network in networks.items()]


@dataclass(frozen=True)
class CheckpointState:
    """The record beside a checkpoint's tensors, `state.json`.

    Attributes:
        step: steps taken.
        sha256: hash of each file of the checkpoint.
        logs: what the log files held then, see `TrainingLog.mark`.
        scalars: last observed scalars.
        format: 1: optimiser states by phase (version 0.1); 2: by network.
    """

    step: int
    sha256: Mapping[str, str]
    logs: Mapping[str, Any]
    scalars: Mapping[str, float]
    format: int = _FORMAT

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> CheckpointState:
        """Read what `to_json` returned, or what version 0.1 wrote.

        Raises:
            DamagedError: it was written by a later version.
        """
        written = values.get("format", 1)
        if written > _FORMAT:
            raise DamagedError(f"{path} was written by a later version of rebalance (format {written})")
        return cls(
            int(values["step"]), values.get("sha256", {}), values.get("logs", {}), values.get("scalars", {}), written
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)


class CheckpointFolder:
    """The checkpoints of one model; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the checkpoints, the oldest first."""
        folders = storage.list_folders(self.folder, "step-*")
        return [path for path in folders if re.fullmatch(r"step-\d+", path.name)]

    def steps(self) -> tuple[int, ...]:
        """Return the steps of the checkpoints, ascending."""
        return tuple(int(path.name.removeprefix("step-")) for path in self.paths())

    def last_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without any."""
        return max(self.steps(), default=0)

    def save(self, state: TrainerState, log: TrainingLog) -> None:
        """Write a checkpoint in one piece and drop all but the last two."""
        path = self.folder / f"step-{state.step:08d}"
        if storage.exists(path):
            return
        logs = log.mark()
        with storage.replacing_folder(path) as temporary:
            # Through Python, whose errors name a full disk as such.
            storage.write_bytes(temporary / _FILES[0], save(_weights(state)))
            storage.write_bytes(temporary / _FILES[1], save(_optimizer_tensors(state.optimizers)))
            hashes = {name: storage.sha256_file(temporary / name) for name in _FILES}
            record = CheckpointState(state.step, hashes, logs, dict(log.latest))
            storage.write_sealed_json(temporary / "state.json", record.to_json())
        for old in self.paths()[:-KEPT]:
            storage.remove_folder(old)

    def restore(self, state: TrainerState, log: TrainingLog) -> int:
        """Load the newest intact checkpoint in place and cut the log back; return the step, 0 without any.

        A damaged checkpoint is passed over with a warning that names it, and removed.

        Raises:
            DamagedError: there are checkpoints, but none is intact.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                record = _load(path, state)
            except DamagedError as error:
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=2)
                continue
            log.cut_back(record.logs)
            log.latest = dict(record.scalars)
            for damaged in paths[paths.index(path) + 1 :]:
                storage.remove_folder(damaged)
            self._warn_of_older(paths[: paths.index(path)])
            return record.step
        if paths:
            raise DamagedError(f"no intact checkpoint in {self.folder}", remedy="Start again with `overwrite=True`")
        log.cut_back({})
        return 0

    def follow(self, state: TrainerState) -> int:
        """Load in place what another process has just restored; return the step, 0 without any."""
        paths = self.paths()
        return _load(paths[-1], state).step if paths else 0

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
            record = read_state(paths[-1])
        except DamagedError as error:
            raise DamagedError(
                str(error), remedy="Run the same `rebalance fit` again, which makes it anew from the one before"
            ) from error
        return load_file(paths[-1] / _FILES[0]), record.sha256[_FILES[0]]

    def problems(self, log: TrainingLog) -> list[storage.Problem]:
        """Hold every checkpoint against its hashes, and the log against what the newest intact one knows of it."""
        problems: list[storage.Problem] = []
        mark: Mapping[str, Any] = {}
        for path in self.paths():
            try:
                mark = read_state(path).logs
            except DamagedError as error:
                problems.append(storage.Problem(str(path), str(error)))
        return problems + log.problems(mark)


def read_state(path: Path) -> CheckpointState:
    """Return a checkpoint's record after checking every file against its hash.

    Raises:
        DamagedError: naming the file.
    """
    record = CheckpointState.from_json(storage.read_sealed_json(path / "state.json"), path / "state.json")
    for name in _FILES:
        if not storage.is_file(path / name):
            raise DamagedError(f"{path / name} is missing")
        if storage.sha256_file(path / name) != record.sha256.get(name):
            raise DamagedError(f"{path / name} is damaged")
    return record


def load_network(network: nn.Module, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load the tensors below `prefix` into a network."""
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    network.load_state_dict(state)


def _load(path: Path, state: TrainerState) -> CheckpointState:
    """Load a checkpoint in place after checking it; return its record."""
    record = read_state(path)
    weights = load_file(path / _FILES[0])
    for prefix, network in state.modules():
        load_network(network, weights, prefix)
    tensors = load_file(path / _FILES[1])
    if record.format == 1 and {name.split("/")[0] for name in tensors} - state.optimizers.keys():
        raise DamagedError(
            f"{path} was written by version 0.1 of rebalance, which kept one optimiser for several networks",
            remedy="Finish the training with that version, or start again with `overwrite=True`",
        )
    _load_optimizers(state.optimizers, tensors)
    return record


def _weights(state: TrainerState) -> dict[str, torch.Tensor]:
    tensors = {}
    for prefix, network in state.modules():
        for key, tensor in network.state_dict().items():
            tensors[f"{prefix}{key}"] = tensor.detach().cpu().contiguous()
    return tensors


def _optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    tensors = {}
    for network, optimizer in optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            for key, tensor in values.items():
                tensors[f"{network}/{number}/{key}"] = torch.as_tensor(tensor).detach().cpu().contiguous()
    return tensors


def _load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]) -> None:
    for network, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            owner, number, key = name.split("/")
            if owner == network:
                like = parameters[int(number)]
                # The parameter's own layout, so that fused updates walk both in the same order.
                same = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                state.setdefault(int(number), {})[key] = same
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
