"""What a study is made of: real images by split, and synthetic ones by origin, all in one view."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rebalance import images, shards
from rebalance.errors import InputError
from rebalance.generation import LoadedRun
from rebalance.index import ImageIndex
from rebalance.index.table import SPLITS
from rebalance.pictures import Picture, check_classes, pictures_of_folder, pictures_of_output, view_of
from rebalance.trials.amounts import Amounts, amounts_of
from rebalance.trials.arms import CONTROL, FILTERED, SYNTHETIC, UNFILTERED, Arm
from rebalance.trials.control import rich_translations
from rebalance.trials.pools import Pool, grayed, load_pool
from rebalance.views import View

ALL = 2**31 - 1
Loader = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Material:
    """The images of a study.

    Attributes:
        classes: the classes, in label order.
        poor: labels of those that have synthetic images.
        pools: real images by split, synthetic ones by origin.
        notes: what is missing.
    """

    classes: tuple[str, ...]
    poor: tuple[int, ...]
    pools: Mapping[str, Pool]
    notes: tuple[str, ...]

    @property
    def n_real(self) -> np.ndarray:
        """(classes,) real train images."""
        return self.pools["train"].counts

    def amounts(self, arm: Arm) -> Amounts:
        """Decide how an arm draws."""
        available = {origin: self.pools[origin].counts for origin in SYNTHETIC if origin in self.pools}
        return amounts_of(arm, self.n_real, available, self.n_real, self.poor)


@dataclass(frozen=True)
class Sources:
    """Where the images come from.

    Attributes:
        index: the real data set, with val.
        out: the synthetic images: an output of `generate`, or images in class folders.
        manifest: the output's manifest, empty for folders.
        run: the run that made them, for `UNFILTERED` and `CONTROL`; None without.
        results: folder in which unfiltered images are made.
        square: how real images become square; None: as the output's.
        device: where images are translated.
        progress: show progress bars on stderr.
    """

    index: ImageIndex
    out: Path
    manifest: Mapping[str, Any]
    run: LoadedRun | None
    results: Path
    square: str | None
    device: torch.device
    progress: bool

    def material(self, origins: Collection[str]) -> Material:
        """Load everything that arms with synthetic images of these origins need.

        Raises:
            InputError: no train, val or test images, or synthetic ones of another data set.
        """
        index = self.index
        self._check_labels()
        made = self._pictures(self.out, self.manifest)
        check_classes(made, index, "train")
        look = view_of(made, self.manifest, self.square)
        pools = {split: self._load(self._real(split, look), split, look) for split in SPLITS}
        notes = self._notes(pools, made)
        pools[FILTERED] = self._load(self._synthetic(made, look), FILTERED, look)
        if UNFILTERED in origins:
            unfiltered = self._pictures(self._make_unfiltered(), self.manifest)
            pools[UNFILTERED] = self._load(self._synthetic(unfiltered, look), UNFILTERED, look)
        if CONTROL in origins:
            pools[CONTROL] = self._load(self._control(made, look, pools["train"].counts), CONTROL, look)
        poor = tuple(label for label, name in enumerate(index.classes) if made.get(name))
        return Material(index.classes, poor, grayed(pools), notes)

    def _check_labels(self) -> None:
        """Check that the output's labels are the data set's."""
        of_output = [row["class"] for row in self.manifest.get("classes", ())]
        if self.manifest and of_output != list(self.index.classes):
            pairs = zip(of_output, self.index.classes, strict=False)
            label = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(of_output), len(self.index.classes)))
            theirs, ours = ((names[label : label + 1] or ["nothing"])[0] for names in (of_output, self.index.classes))
            raise InputError(
                f"OUT was made for another data set: its label {label} is {theirs!r}, in DATA it is {ours!r}",
                remedy="Name the data set that the run was fitted on",
            )

    def _pictures(self, out: Path, manifest: Mapping[str, Any]) -> dict[str, list[Picture]]:
        return pictures_of_output(out, ALL) if manifest else pictures_of_folder(out, ALL, 0, self.progress)

    def _real(self, split: str, look: View) -> list[list[Loader]]:
        def load(row: int) -> np.ndarray:
            return look.of_real(self.index.load(row))

        return [
            [functools.partial(load, row) for row in self.index.rows(split, name).tolist()]
            for name in self.index.classes
        ]

    def _synthetic(self, made: Mapping[str, Sequence[Picture]], look: View) -> list[list[Loader]]:
        def load(picture: Picture) -> np.ndarray:
            return look.of_synthetic(picture.load())

        return [[functools.partial(load, picture) for picture in made.get(name, ())] for name in self.index.classes]

    def _load(self, by_class: list[list[Loader]], what: str, look: View) -> Pool:
        return load_pool(by_class, (look.size_px, look.size_px, 3), what, self.progress)

    def _notes(self, pools: Mapping[str, Pool], made: Mapping[str, Sequence[Picture]]) -> tuple[str, ...]:
        """Say what is missing.

        Raises:
            InputError: a split without any image.
        """
        for split in SPLITS:
            if not pools[split].counts.sum():
                raise InputError(
                    f"DATA has no {split} images",
                    remedy="A study trains on train, chooses on val and reports on test: give DATA all three",
                )
        notes = [
            f"class {name!r} has no {split} images: {consequence}"
            for split, consequence in (("val", "no choice sees it"), ("test", "it counts in no figure"))
            for name, n in zip(self.index.classes, pools[split].counts, strict=True)
            if not n
        ]
        request = self.manifest.get("request", {})
        without = {*request.get("counts", ()), *request.get("withheld", ())} - made.keys()
        notes += [f"class {name!r} has no synthetic images" for name in self.index.classes if name in without]
        return tuple(notes)

    def _make_unfiltered(self) -> Path:
        """Make as many images as the output has, without a filter, with the same seed and format."""
        request, real = self.manifest["request"], self.index.counts("train")
        made = {row["class"]: row["synthetic"] for row in self.manifest["classes"] if row["synthetic"]}
        out = self.results / UNFILTERED
        shards.generate(
            self._run().directory.path,
            out,
            balance={name: real[name] + n for name, n in made.items()},
            file_format=request["file_format"],
            quality=request["quality"] or 95,
            seed=request["seed"],
            filter_images=False,
            data=self.index.root,
            device=str(self.device.type),
            progress=self.progress,
        )
        return out

    def _control(self, made: Mapping[str, Sequence[Picture]], look: View, n_real: np.ndarray) -> list[list[Loader]]:
        """The output's images, and translations of every class that has none: as many as the largest of the others."""
        run, most = self._run(), max(map(len, made.values()))
        by_class = self._synthetic(made, look)
        for label, name in enumerate(self.index.classes):
            if not by_class[label]:
                n = min(most, int(n_real[label]))
                translated = rich_translations(run, name, n, run.recipe.seed, self.device)
                by_class[label] = [functools.partial(_through, look, pixels) for pixels in translated]
        return by_class

    def _run(self) -> LoadedRun:
        if self.run is None:
            raise InputError("arms with unfiltered or control images need --run: the run that made OUT")
        return self.run


def _through(look: View, pixels: np.ndarray) -> np.ndarray:
    """Bring made pixels through the output's file format and into the view."""
    if look.encoding is None:
        return look.of_synthetic(Image.fromarray(pixels.squeeze()))
    return look.of_synthetic(Image.open(io.BytesIO(images.encode(pixels, *look.encoding))))
