"""TensorBoard scalars and preview grids; after a resume they are those of an undisturbed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from rebalance import files, images
from rebalance.trainable import Loss


@dataclass(frozen=True)
class Observation:
    """What a look at the averaged networks gave: scalars for the log and a picture."""

    scalars: Mapping[str, float]
    grid: Image.Image


class TrainingLog:
    """Writes one model's logs. Checkpoints remember how long the files were, and resuming cuts them back."""

    def __init__(self, folder: Path, previews: Path) -> None:
        self.folder, self.previews = folder, previews
        self.latest: dict[str, float] = {}
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TrainingLog:
        with files.writing(self.folder):
            self._writer = SummaryWriter(str(self.folder), flush_secs=10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def scalars(self, losses: Mapping[str, Loss], step: int) -> dict[str, str]:
        """Log every term of every phase; return short texts of them for a progress bar."""
        shown = {}
        for phase, loss in losses.items():
            for term, value in {**loss.terms, "total": loss.total}.items():
                number = float(value.detach())
                self._write(f"{phase}/{term}", number, step)
                if term in loss.terms:
                    shown[f"{phase[0].upper()}.{term}"] = f"{number:.2f}"
        return shown

    def observation(self, observation: Observation, step: int) -> None:
        """Log an observation's scalars and picture; the picture is also written as PNG."""
        for name, value in observation.scalars.items():
            self.latest[name] = value
            self._write(name, value, step)
        if self._writer:
            self._writer.add_image("preview", np.asarray(observation.grid), step, dataformats="HWC")
        files.write_bytes(self.previews / f"step-{step:07d}.png", images.png_bytes(observation.grid))

    def _write(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._writer.add_scalar(name, value, step)

    def mark(self) -> dict[str, int]:
        """Flush and return the size of every log file, for `cut_back`."""
        if self._writer:
            self._writer.flush()
        sizes = {}
        for path in sorted(self.folder.glob("events.*")):
            files.fsync_path(path)
            sizes[path.name] = path.stat().st_size
        return sizes

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Cut the files back to the sizes that `mark` returned; newer files are removed."""
        for path in self.folder.glob("events.*"):
            if path.name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path.name]:
                with open(path, "r+b") as file:
                    file.truncate(sizes[path.name])
