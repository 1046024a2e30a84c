"""Check every file of a run against the hash that was written with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.errors import DamagedError
from rebalance.learning.checkpoints import CheckpointFolder
from rebalance.learning.logs import TrainingLog
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import stages_of


@dataclass(frozen=True)
class RunVerification:
    """Result of checking a run.

    Attributes:
        checkpoints: steps of the checkpoints that are there, by model.
        unfinished: models whose newest checkpoint is not their last one.
        problems: everything that is missing or damaged; empty when all is well.
    """

    checkpoints: dict[str, tuple[int, ...]]
    unfinished: tuple[str, ...]
    problems: tuple[storage.Problem, ...]

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
    from rebalance.filtering import calibration_store  # filtering stands above this station

    directory = RunDirectory(Path(run))
    problems, checkpoints = directory.problems(), {}
    for folder in storage.list_folders(directory.path / "checkpoints"):
        model = CheckpointFolder(folder)
        checkpoints[folder.name] = model.steps()
        problems += model.problems(TrainingLog(directory.logs(folder.name), directory.previews(folder.name)))
    problems += calibration_store.problems(directory.calibration_path)
    return RunVerification(checkpoints, _unfinished(directory, checkpoints), tuple(problems))


def _unfinished(directory: RunDirectory, checkpoints: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    try:
        stages = stages_of(directory.plan(), directory.index(), directory.recipe())
    except DamagedError:
        return ()  # said already, by the file's name
    return tuple(
        stage.name for stage in stages if max(checkpoints.get(stage.name, ()), default=0) < stage.training.steps
    )
