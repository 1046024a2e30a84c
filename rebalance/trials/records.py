"""The records of a study on disk: its identity, the way its classifiers are computed, and its trials.

Schema 2 is that of version 0.1, which wrote it into the study alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from rebalance import storage
from rebalance.config import DownstreamOptions, changed_keys
from rebalance.config.options import to_mapping
from rebalance.errors import DamagedError, RefusedError
from rebalance.learning.loop import LoopOptions
from rebalance.trials.arms import Arm, parse_arms
from rebalance.trials.batches import Amounts
from rebalance.trials.trial import Confusion
from rebalance.version import __version__

logger = logging.getLogger(__name__)

STUDY, TRIALS = "study.json", "trials"
SCHEMA = 2
"""One more whenever a study or its trials are kept otherwise, or trials would come out otherwise."""
_MISSING = "It counts as missing, and is run again where it is asked for."


@dataclass(frozen=True)
class Validation:
    """The val images of a study.

    Attributes:
        fraction: share of each class that is held out of train where the data set has no val split.
        seed: seed of their order.
        by_seed: every seed of the study holds out other images.
    """

    fraction: float
    seed: int
    by_seed: bool


@dataclass(frozen=True)
class StudyIdentity:
    """Everything that decides what a trial of an arm and seed comes to.

    Attributes:
        data: fingerprint of the real data set.
        synthetic: fingerprint of the synthetic images.
        square: how real images become square; None: as the output's.
        device: properties of the device that affect rounding.
        validation: the val images.
        classifier: the classifier of every arm.
    """

    data: str
    synthetic: str
    square: str | None
    device: str
    validation: Validation
    classifier: DownstreamOptions

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain values."""
        return {
            "data": self.data,
            "synthetic": self.synthetic,
            "square": self.square,
            "device": self.device,
            "val": asdict(self.validation),
            "downstream": to_mapping(self.classifier),
            "libraries": {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
            "trials": SCHEMA,
        }

    @property
    def key(self) -> str:
        """A hash of the identity, which every trial carries."""
        return storage.sha256_bytes(storage.canonical_json(self.to_json()).encode())


@dataclass(frozen=True)
class Computation:
    """How classifiers are computed on this machine, chosen once by timing.

    Attributes:
        precision: "fp32" or "bf16".
        memory_format: "contiguous" or "channels_last".
        threads: CPU threads; 0 leaves them as they are.
    """

    precision: str
    memory_format: str
    threads: int

    @classmethod
    def of(cls, loop: LoopOptions) -> Computation:
        """Return the part of loop options that a machine decides."""
        return cls(loop.precision, loop.memory_format, loop.threads)

    def applied(self, loop: LoopOptions) -> LoopOptions:
        """Return loop options that compute like this."""
        return replace(loop, **asdict(self))


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        confusion: its predictions.
        amounts: how its arm draws from all synthetic images and the run's train images.
    """

    confusion: Confusion
    amounts: Amounts

    def to_json(self) -> dict[str, Any]:
        """Return the trial as plain values."""
        values: dict[str, Any] = {"val": self.confusion.val.tolist(), "test": self.confusion.test.tolist()}
        values |= {"val_loss": self.confusion.val_loss, "seconds": self.confusion.seconds}
        return {**values, "amounts": {name: of.tolist() for name, of in asdict(self.amounts).items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialRecord:
        """Read what `to_json` returns."""
        val, test = np.array(values["val"]), np.array(values["test"])
        amounts = {name: np.array(of) for name, of in values["amounts"].items()}
        return cls(Confusion(val, test, values["val_loss"], values["seconds"]), Amounts(**amounts))


def write_study(folder: Path, identity: StudyIdentity, computation: Computation) -> None:
    """Say what a folder is the study of."""
    storage.write_sealed_json(folder / STUDY, {"identity": identity.to_json(), "loop": asdict(computation)})


def read_computation(folder: Path) -> Computation:
    """Return how the classifiers of a study that was begun are computed.

    Raises:
        DamagedError: the study's file is missing or damaged.
    """
    return Computation(**storage.read_sealed_json(folder / STUDY)["loop"])


def begun_computation(folder: Path, identity: StudyIdentity) -> Computation | None:
    """Return how the classifiers of this study are computed; None before it was begun.

    Raises:
        RefusedError: the folder holds another study, or one of another version.
    """
    if not storage.is_file(folder / STUDY):
        return None
    begun = storage.read_sealed_json(folder / STUDY)["identity"]
    _check_schema(folder, begun.get("trials"))
    changes = changed_keys(begun, identity.to_json())
    if changes:
        raise RefusedError(
            f"{folder} holds another study: {'; '.join(changes[:8])}",
            remedy="Choose another `results`, give the same request, or start again with `overwrite=True`",
        )
    return read_computation(folder)


def _check_schema(path: Path, schema: object) -> None:
    if schema != SCHEMA:
        raise RefusedError(
            f"{path} was written by another version of rebalance: its trials have schema {schema}, "
            f"version {__version__} reads schema {SCHEMA}",
            remedy="Choose another `results`, use that version, or start again with `overwrite=True`",
        )


@dataclass(frozen=True)
class TrialFiles:
    """The finished trials of one study, one file each; those of another study in the folder count as missing.

    Attributes:
        folder: folder of the study.
        key: identifies the study.
    """

    folder: Path
    key: str

    def read(self) -> dict[Arm, dict[int, TrialRecord]]:
        """Return the intact trials by arm and seed.

        Raises:
            RefusedError: a trial of this study was written by another version.
        """
        records: dict[Arm, dict[int, TrialRecord]] = {}
        for arm in arms_of(self.folder):
            for path in storage.list_files(self.folder / TRIALS / arm.name, "seed-*.json"):
                record = self._read(path)
                if record is not None:
                    records.setdefault(arm, {})[seed_of(path)] = record
        return records

    def _read(self, path: Path) -> TrialRecord | None:
        try:
            values = storage.read_sealed_json(path)
        except DamagedError as error:
            logger.warning("%s %s", error, _MISSING)
            return None
        if values.get("study") != self.key:
            logger.warning("%s is of another study. %s", path, _MISSING)
            return None
        _check_schema(path, values.get("schema", SCHEMA))
        return TrialRecord.from_json(values)

    def write(self, arm: Arm, seed: int, record: TrialRecord) -> None:
        """Keep a trial."""
        path = self.folder / TRIALS / arm.name / f"seed-{seed}.json"
        storage.write_sealed_json(path, {**record.to_json(), "study": self.key, "schema": SCHEMA})


def arms_of(folder: Path) -> list[Arm]:
    """Return the arms that the folder of a study has trials of."""
    return [arm for path in storage.list_folders(folder / TRIALS) for arm in parse_arms([path.name], ())]


def seed_of(path: Path) -> int:
    """Return the seed of a trial by the name of its file."""
    return int(path.stem.removeprefix("seed-"))
