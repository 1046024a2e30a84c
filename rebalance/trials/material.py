"""What a study is made of: real images by split, and synthetic ones by origin, all in one view."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rebalance import images, shards
from rebalance.errors import InputError
from rebalance.generation import LoadedRun
from rebalance.index import ImageIndex
from rebalance.pictures import Picture, check_classes, pictures_of_folder, pictures_of_output, view_of
from rebalance.shards.given import given_images
from rebalance.trials.amounts import Amounts, amounts_of
from rebalance.trials.arms import CONTROL, FILTERED, UNFILTERED, Arm
from rebalance.trials.control import rich_translations
from rebalance.trials.held_out import HeldOut
from rebalance.trials.pools import Pool, grayed, load_pool
from rebalance.views import View

ALL = 2**31 - 1
TRAIN, VAL, TEST, REAL = "train", "val", "test", "real"
Loader = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Material:
    """The images of a study.

    Attributes:
        classes: the classes, in label order.
        poor: labels of those that have synthetic images.
        n_real: (classes,) real train images as the run splits them, which multiples and balances count.
        pools: `REAL`, which are train and val, `TEST`, and synthetic images by origin.
        real_ids: (n,) ids of the real images.
        made_from: ids (n, k) of the real images that synthetic ones were made from, -1 for none, by origin.
        held_out: which real images are val.
        notes: what is missing.
    """

    classes: tuple[str, ...]
    poor: tuple[int, ...]
    n_real: np.ndarray
    pools: Mapping[str, Pool]
    real_ids: np.ndarray
    made_from: Mapping[str, np.ndarray]
    held_out: HeldOut
    notes: tuple[str, ...]

    def of_seed(self, seed: int) -> dict[str, Pool]:
        """Return train, val, test and synthetic images by origin, without those that were made from an image of val."""
        ids, real = self.held_out.ids(seed), self.pools[REAL]
        held = np.isin(self.real_ids, ids)
        pools = {TRAIN: real.kept(~held), VAL: real.kept(held), TEST: self.pools[TEST]}
        for origin, made_from in self.made_from.items():
            pools[origin] = self.pools[origin].kept(~np.isin(made_from, ids).any(1))
        return pools

    def n_val(self, seeds: int) -> np.ndarray:
        """Return how many images (classes,) of each class are val in one of the first seeds."""
        held = np.unique(np.concatenate([self.held_out.ids(seed) for seed in range(seeds)]))
        return self.pools[REAL].kept(np.isin(self.real_ids, held)).counts

    def amounts(self, arm: Arm, pools: Mapping[str, Pool] | None = None) -> Amounts:
        """Decide how an arm draws from the pools of a seed, or from all synthetic images and the run's train."""
        n_real = self.n_real if pools is None else pools[TRAIN].counts
        available = {origin: (pools or self.pools)[origin].counts for origin in self.made_from}
        return amounts_of(arm, n_real, available, self.n_real, self.poor)


@dataclass(frozen=True)
class Made:
    """Synthetic images of one origin, to be loaded.

    Attributes:
        by_class: what gives each image, by label.
        made_from: names of the real images that each was made from, in the same order.
    """

    by_class: list[list[Loader]]
    made_from: list[tuple[str, ...]]


@dataclass(frozen=True)
class Sources:
    """Where the images come from.

    Attributes:
        held_out: the real data set, and which of its images are val.
        out: the synthetic images: an output of `generate`, or images in class folders.
        manifest: the output's manifest, empty for folders.
        run: the run that made them, for `UNFILTERED` and `CONTROL`; None without.
        results: folder in which unfiltered images are made.
        square: how real images become square; None: as the output's.
        device: where images are translated.
        progress: show progress bars on stderr.
    """

    held_out: HeldOut
    out: Path
    manifest: Mapping[str, Any]
    run: LoadedRun | None
    results: Path
    square: str | None
    device: torch.device
    progress: bool

    @property
    def index(self) -> ImageIndex:
        """The real data set as the run splits it."""
        return self.held_out.of_run

    def material(self, origins: Collection[str]) -> Material:
        """Load everything that arms with synthetic images of these origins need.

        Raises:
            InputError: no train, val or test images, or synthetic ones of another data set.
        """
        index = self.index
        self._check_labels()
        pictures = self._pictures(self.out, self.manifest)
        check_classes(pictures, index, TRAIN)
        look = self._look(pictures)
        real = [self._rows(TRAIN, VAL, name=name) for name in index.classes]
        test = [self._rows(TEST, name=name) for name in index.classes]
        notes = self._notes(real, test, pictures)
        pools = {name: self._load(self._real(rows, look), name, look) for name, rows in ((REAL, real), (TEST, test))}
        made = self._made(pictures, origins, look)
        pools |= {origin: self._load(of_origin.by_class, origin, look) for origin, of_origin in made.items()}
        return Material(
            classes=index.classes,
            poor=tuple(label for label, name in enumerate(index.classes) if pictures.get(name)),
            n_real=np.array(list(index.counts(TRAIN).values())),
            pools=grayed(pools),
            real_ids=np.concatenate(real),
            made_from={origin: self.held_out.ids_of(of_origin.made_from) for origin, of_origin in made.items()},
            held_out=self.held_out,
            notes=notes,
        )

    def _look(self, pictures: Mapping[str, Sequence[Picture]]) -> View:
        """Return the view of all images; real ones go through the synthetic ones' file format, if all have one."""
        look = view_of(pictures, self.manifest, self.square)
        return look if self.manifest else replace(look, encoding=given_images(self.out, 0, self.progress).encoding)

    def _made(self, pictures: Mapping[str, Sequence[Picture]], origins: Collection[str], look: View) -> dict[str, Made]:
        """Return the output's images, and those of other origins that are wanted."""
        made = {FILTERED: self._synthetic(pictures, look)}
        if UNFILTERED in origins:
            made[UNFILTERED] = self._synthetic(self._pictures(self._make_unfiltered(), self.manifest), look)
        if CONTROL in origins:
            made[CONTROL] = self._control(pictures, look)
        return made

    def _rows(self, *splits: str, name: str) -> np.ndarray:
        """Return the ids of the usable images of a class in some splits, ascending."""
        return np.sort(np.concatenate([self.index.rows(split, name) for split in splits]))

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

    def _real(self, by_class: Sequence[np.ndarray], look: View) -> list[list[Loader]]:
        def load(row: int) -> np.ndarray:
            return look.of_real(self.index.load(row))

        return [[functools.partial(load, row) for row in rows.tolist()] for rows in by_class]

    def _synthetic(self, pictures: Mapping[str, Sequence[Picture]], look: View) -> Made:
        def load(picture: Picture) -> np.ndarray:
            return look.of_synthetic(picture.load())

        by_class = [pictures.get(name, ()) for name in self.index.classes]
        return Made(
            [[functools.partial(load, picture) for picture in of_class] for of_class in by_class],
            [picture.made_from for of_class in by_class for picture in of_class],
        )

    def _load(self, by_class: list[list[Loader]], what: str, look: View) -> Pool:
        return load_pool(by_class, (look.size_px, look.size_px, 3), what, self.progress)

    def _notes(
        self, real: Sequence[np.ndarray], test: Sequence[np.ndarray], pictures: Mapping[str, Sequence[Picture]]
    ) -> tuple[str, ...]:
        """Say what is missing.

        Raises:
            InputError: a split without any image.
        """
        val = self.held_out.ids(0)
        n_val = [int(np.isin(ids, val).sum()) for ids in real]
        n_train, n_test = sum(map(len, real)) - sum(n_val), [len(ids) for ids in test]
        for split, n in ((TRAIN, n_train), (VAL, sum(n_val)), (TEST, sum(n_test))):
            if not n:
                raise InputError(
                    f"DATA has no {split} images",
                    remedy="A study trains on train, chooses on val and reports on test: give DATA all three",
                )
        notes = [
            f"class {name!r} has no {split} images: {consequence}"
            for split, counts, consequence in (
                (VAL, n_val, "no choice sees it"), (TEST, n_test, "it counts in no figure"),
            )
            for name, n in zip(self.index.classes, counts, strict=True)
            if not n
        ]  # fmt: skip
        request = self.manifest.get("request", {})
        without = {*request.get("counts", ()), *request.get("withheld", ())} - pictures.keys()
        notes += [f"class {name!r} has no synthetic images" for name in self.index.classes if name in without]
        every = (picture.made_from for of_class in pictures.values() for picture in of_class)
        if self.held_out.changes and not all(map(self.held_out.knows, every)):
            notes.append("val is held out of train, and OUT may have been made from it: choices may favour its images")
        return tuple(notes)

    def _make_unfiltered(self) -> Path:
        """Make as many images as the output has, without a filter, with the same seed and format."""
        request, real = self.manifest["request"], self.index.counts(TRAIN)
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

    def _control(self, pictures: Mapping[str, Sequence[Picture]], look: View) -> Made:
        """The output's images, and translations of every class that has none: as many as the largest of the others."""
        run, most, n_real = self._run(), max(map(len, pictures.values())), self.index.counts(TRAIN)
        by_class, made_from = [], []
        for label, name in enumerate(self.index.classes):
            of_class = self._synthetic({name: pictures.get(name, ())}, look)
            if pictures.get(name):
                by_class.append(of_class.by_class[label])
                made_from += of_class.made_from
                continue
            n = min(most, n_real[name])
            translated = list(rich_translations(run, name, n, run.recipe.seed, self.device))
            by_class.append([functools.partial(_through, look, image.pixels) for image in translated])
            made_from += [image.made_from for image in translated]
        return Made(by_class, made_from)

    def _run(self) -> LoadedRun:
        if self.run is None:
            raise InputError("arms with unfiltered or control images need --run: the run that made OUT")
        return self.run


def _through(look: View, pixels: np.ndarray) -> np.ndarray:
    """Bring made pixels through the output's file format and into the view."""
    if look.encoding is None:
        return look.of_synthetic(Image.fromarray(pixels.squeeze()))
    return look.of_synthetic(Image.open(io.BytesIO(images.encode(pixels, *look.encoding))))
