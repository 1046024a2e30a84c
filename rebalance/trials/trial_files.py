"""The trials of a study on disk: one sealed file each."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rebalance import files
from rebalance.errors import DamagedError
from rebalance.trials.amounts import Amounts
from rebalance.trials.arms import Arm, parse_arms
from rebalance.trials.classifier import Confusion

logger = logging.getLogger(__name__)

TRIALS = "trials"
_MISSING = "It counts as missing, and is run again where it is asked for."


@dataclass(frozen=True)
class Outcome:
    """A finished trial.

    Attributes:
        confusion: what came of it.
        amounts: how its arm draws from all synthetic images and the run's train images.
    """

    confusion: Confusion
    amounts: Amounts


@dataclass(frozen=True)
class TrialFiles:
    """The finished trials of one study; those of another one in the same folder count as missing.

    Attributes:
        folder: folder of the study.
        key: identifies the study.
    """

    folder: Path
    key: str

    def read(self) -> dict[Arm, dict[int, Outcome]]:
        """Return the trials that are there and intact, by arm and seed."""
        found: dict[Arm, dict[int, Outcome]] = {}
        for arm in arms_of(self.folder):
            for path in sorted((self.folder / TRIALS / arm.name).glob("seed-*.json")):
                outcome = self._read(path)
                if outcome is not None:
                    found.setdefault(arm, {})[int(path.stem.removeprefix("seed-"))] = outcome
        return found

    def _read(self, path: Path) -> Outcome | None:
        try:
            values = files.read_sealed_json(path)
        except DamagedError as error:
            logger.warning("%s %s", error, _MISSING)
            return None
        if values.get("study") != self.key:
            logger.warning("%s is of another study. %s", path, _MISSING)
            return None
        confusion = Confusion(np.array(values["val"]), np.array(values["test"]), values["val_loss"], values["seconds"])
        return Outcome(confusion, Amounts(**{name: np.array(of) for name, of in values["amounts"].items()}))

    def write(self, arm: Arm, seed: int, outcome: Outcome) -> None:
        """Keep a trial."""
        found = outcome.confusion
        values = {"val": found.val.tolist(), "test": found.test.tolist()}
        values |= {"val_loss": found.val_loss, "seconds": found.seconds}
        amounts = {name: of.tolist() for name, of in asdict(outcome.amounts).items()}
        path = self.folder / TRIALS / arm.name / f"seed-{seed}.json"
        files.write_sealed_json(path, {**values, "amounts": amounts, "study": self.key})


def arms_of(folder: Path) -> list[Arm]:
    """Return the arms that the folder of a study has trials of."""
    names = [path.name for path in sorted((folder / TRIALS).glob("*")) if path.is_dir()]
    return [arm for name in names for arm in parse_arms([name], ())]
