"""TensorBoard scalars and preview grids; after a resume they are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import summary

from rebalance import imaging, storage
from rebalance.learning.trainable import Loss


@dataclass(frozen=True)
class Observation:
    """Measurement of the averaged networks: scalars for the log and a picture."""

    scalars: Mapping[str, float]
    grid: Image.Image


class TrainingLog:
    """Writes one model's logs. Checkpoints remember how long the file was, and resuming cuts it back.

    It writes in the calling thread, because torch's SummaryWriter loses what goes wrong in its own.
    """

    def __init__(self, folder: Path, previews: Path) -> None:
        self.path, self.previews = folder / "events.out.tfevents.0", previews
        self.latest: dict[str, float] = {}
        self._pictures: dict[str, str] = {}
        self._hashed = _Growing()
        self._file: IO[bytes] | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> TrainingLog:
        self._file = self._open.enter_context(storage.appending(self.path))
        if not self._file.tell():
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        return self

    def __exit__(self, *_: object) -> None:
        self._file = None
        self._open.close()

    def scalars(self, losses: Mapping[str, Loss], step: int) -> dict[str, str]:
        """Log every term of every phase; return short texts of them for a progress bar."""
        shown = {}
        for phase, loss in losses.items():
            for term, value in {**loss.terms, "total": loss.total}.items():
                number = float(value.detach())
                self._summary(summary.scalar(f"{phase}/{term}", number), step)
                if term in loss.terms:
                    shown[f"{phase[0].upper()}.{term}"] = f"{number:.2f}"
        self._flush()
        return shown

    def observation(self, observation: Observation, step: int) -> None:
        """Log an observation's scalars and picture; the picture is also written as PNG."""
        for name, value in observation.scalars.items():
            self.latest[name] = value
            self._summary(summary.scalar(name, value), step)
        self._summary(summary.image("preview", np.asarray(observation.grid), dataformats="HWC"), step)
        self._flush()
        picture, name = imaging.png_bytes(observation.grid), f"step-{step:07d}.png"
        storage.write_bytes(self.previews / name, picture)
        self._pictures[name] = storage.sha256_bytes(picture)

    def _summary(self, value: Summary, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=value))

    def _write(self, event: Event) -> None:
        if self._file:
            with storage.writing(self.path):
                RecordWriter(self._file).write(event.SerializeToString())

    def _flush(self) -> None:
        if self._file:
            with storage.writing(self.path):
                self._file.flush()

    def mark(self) -> dict[str, Any]:
        """Flush and return what the files hold now, for `cut_back` and `problems`."""
        self._flush()
        if not storage.is_file(self.path):
            return {}
        with storage.writing(self.path):
            storage.sync(self.path)
        self._hashed.add(storage.read_bytes(self.path, self._hashed.bytes))
        events = {"bytes": self._hashed.bytes, "sha256": self._hashed.digest.hexdigest()}
        return {"events": events, "pictures": dict(sorted(self._pictures.items()))}

    def cut_back(self, mark: Mapping[str, Any]) -> None:
        """Bring the file back to what it was at a `mark`; without one, to nothing.

        Damage is warned of and does not stop training, which reads none of it. A damaged file is put aside under a name
        that TensorBoard passes over, because it reads nothing of what follows a damaged record.
        """
        damaged = self.problems(mark)
        for problem in damaged:
            warnings.warn(f"{problem.file}: {problem.what}; training goes on without", stacklevel=2)
        self._pictures, self._hashed = dict(mark.get("pictures", {})), _Growing()
        is_damaged = str(self.path) in (problem.file for problem in damaged)
        if not mark:
            storage.remove_file(self.path)
        elif storage.is_file(self.path) and is_damaged:
            storage.move(self.path, self.path.with_name("damaged-log"))
        elif storage.is_file(self.path) and storage.size(self.path) > mark["events"]["bytes"]:
            storage.truncate(self.path, mark["events"]["bytes"])

    def problems(self, mark: Mapping[str, Any]) -> list[storage.Problem]:
        """Compare the files with a mark; what came after it is ignored."""
        if not mark:
            return []
        expected = [(self.path, mark["events"]["bytes"], mark["events"]["sha256"])]
        expected += [(self.previews / name, -1, sha256) for name, sha256 in mark["pictures"].items()]
        problems = []
        for path, size, sha256 in expected:
            if not storage.is_file(path):
                problems.append(storage.Problem(str(path), "missing"))
            elif _sha256_of_start(path, size) != sha256:
                problems.append(storage.Problem(str(path), "damaged: its hash is not the one written with it"))
        return problems


class _Growing:
    """Hash of a growing file, and the number of bytes hashed."""

    def __init__(self) -> None:
        self.bytes = 0
        self.digest = hashlib.sha256()

    def add(self, new: bytes) -> None:
        self.bytes += len(new)
        self.digest.update(new)


def _sha256_of_start(path: Path, size: int) -> str:
    """Return the hash of the first `size` bytes of a file, of all when it is negative."""
    return storage.sha256_bytes(storage.read_bytes(path, 0, None if size < 0 else size))


def read_scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Return every (tag, step, value) in the TensorBoard files below a folder, sorted; a tag begins with the model."""
    scalars = []
    for path in storage.find_files(folder, "events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.append((f"{path.parent.name}/{value.tag}", event.step, float(make_ndarray(value.tensor))))
    return sorted(scalars)
