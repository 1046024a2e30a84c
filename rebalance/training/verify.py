"""Every file of a run against the hash that was written with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.errors import DamagedError
from rebalance.training.checkpoints import CheckpointFolder
from rebalance.training.logs import TrainingLog
from rebalance.training.run import RunDirectory, units_of

CALIBRATION_ARRAYS = {"arrays": ".safetensors", "yardsticks": ".yardsticks.safetensors"}
"""Members of a calibration's JSON that hold the hash of a file beside it, and how that ends."""


@dataclass(frozen=True)
class RunVerification:
    """What of a run was checked and what was found.

    Attributes:
        checkpoints: steps of the checkpoints that are there, by model.
        unfinished: models whose newest checkpoint is not their last one.
        problems: everything that is missing or damaged; empty when all is well.
    """

    checkpoints: dict[str, tuple[int, ...]]
    unfinished: tuple[str, ...]
    problems: tuple[files.Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 when all is well, else 1."""
        return 1 if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """Return the verification as plain values."""
        return asdict(self)


def verify_run(run: str | Path) -> RunVerification:
    """Check the decided files, checkpoints, logs, pictures and calibrations of a run.

    Args:
        run: a run directory, finished or not. No `fit` should be at work in it.

    Raises:
        InputError: not a run directory.
        DamagedError: the hashes themselves are damaged, so nothing can be told.
    """
    directory = RunDirectory(Path(run))
    problems, checkpoints = directory.problems(), {}
    for folder in sorted(path for path in (directory.path / "checkpoints").glob("*") if path.is_dir()):
        model = CheckpointFolder(folder)
        checkpoints[folder.name] = model.steps()
        problems += model.problems(TrainingLog(directory.logs(folder.name), directory.previews(folder.name)))
    for path in sorted(directory.calibration_path.glob("*.json")):
        try:
            values = files.read_sealed_json(path)
            for arrays, ending in CALIBRATION_ARRAYS.items():
                if values.get(arrays):
                    files.read_hashed(path.with_suffix(ending), values[arrays]["sha256"])
        except DamagedError as error:
            problems.append(files.Problem(str(path), str(error)))
    return RunVerification(checkpoints, _unfinished(directory, checkpoints), tuple(problems))


def _unfinished(directory: RunDirectory, checkpoints: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    try:
        recipe = directory.recipe()
        units = units_of(directory.plan(), directory.index(), recipe)
    except DamagedError:
        return ()  # said already, by the file's name
    return tuple(unit.name for unit in units if max(checkpoints.get(unit.name, (0,))) < recipe.training.steps)
