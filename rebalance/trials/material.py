"""The images of a study: real ones by split, and synthetic ones by kind, all in one view."""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rebalance import imaging, shards
from rebalance.config.requests import FilterChoice, OutputOptions
from rebalance.errors import InputError
from rebalance.evaluation.images import Picture, check_classes, pictures_of_index, pictures_of_output, view_of
from rebalance.generation.loaded_run import LoadedRun
from rebalance.generation.provenance import Provenance
from rebalance.imaging.views import View
from rebalance.index import ImageIndex
from rebalance.shards.given import GivenImages
from rebalance.shards.records import Manifest
from rebalance.trials.amounts import amounts_of
from rebalance.trials.arms import CONTROL, FILTERED, UNFILTERED, Arm
from rebalance.trials.batches import Amounts
from rebalance.trials.control import rich_translations
from rebalance.trials.held_out import HeldOut
from rebalance.trials.pools import Loader, Pool, grayed, load_pool

ALL = 2**31 - 1  # more images than any class has
TRAIN, VAL, TEST, REAL = "train", "val", "test", "real"


@dataclass(frozen=True)
class Material:
    """The images of a study.

    Attributes:
        classes: the classes, in label order.
        poor: labels of those that have synthetic images.
        n_real: (classes,) real train images as the run splits them, which multiples and balances count.
        pools: `REAL`, which are train and val, `TEST`, and synthetic images by kind.
        real_ids: (n,) ids of the real images.
        made_from: ids (n, k) of the real images that synthetic ones were made from, -1 for none, by kind.
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
        """Return train, val, test and synthetic images by kind, without those that were made from an image of val."""
        ids, real = self.held_out.ids(seed), self.pools[REAL]
        held = np.isin(self.real_ids, ids)
        pools = {TRAIN: real.kept(~held), VAL: real.kept(held), TEST: self.pools[TEST]}
        for kind, made_from in self.made_from.items():
            pools[kind] = self.pools[kind].kept(~np.any(np.isin(made_from, ids), axis=1))
        return pools

    def n_val(self, seeds: int) -> np.ndarray:
        """Return how many images (classes,) of each class are val in one of the first seeds."""
        held = np.unique(np.concatenate([self.held_out.ids(seed) for seed in range(seeds)]))
        return self.pools[REAL].kept(np.isin(self.real_ids, held)).counts

    def amounts(self, arm: Arm, pools: Mapping[str, Pool] | None = None) -> Amounts:
        """Decide how an arm draws from the pools of a seed, or from all synthetic images and the run's train."""
        n_real = self.n_real if pools is None else pools[TRAIN].counts
        available = {kind: (pools or self.pools)[kind].counts for kind in self.made_from}
        return amounts_of(arm, n_real, available, self.n_real, self.poor)


@dataclass(frozen=True)
class SyntheticImages:
    """Synthetic images of one kind, to be loaded.

    Attributes:
        loaders: a loader of each image, by label.
        provenances: what each image was made from, in the same order.
    """

    loaders: list[list[Loader]]
    provenances: list[Provenance]


@dataclass(frozen=True)
class MaterialLoader:
    """Loads the images of a study.

    Attributes:
        held_out: the real data set, and which of its images are val.
        synthetic: folder of the synthetic images.
        manifest: the manifest of an output of `generate` or `filter`; None for given images.
        given: given images; None for an output.
        run: the run that made them, for `UNFILTERED` and `CONTROL`; None without.
        results: folder in which unfiltered images are made.
        square: how real images become square; None: as the output's.
        device: where images are translated.
        progress: show progress bars on stderr.
    """

    held_out: HeldOut
    synthetic: Path
    manifest: Manifest | None
    given: GivenImages | None
    run: LoadedRun | None
    results: Path
    square: str | None
    device: torch.device
    progress: bool

    @property
    def index(self) -> ImageIndex:
        """The real data set as the run splits it."""
        return self.held_out.of_run

    def material(self, kinds: Collection[str]) -> Material:
        """Load everything that arms with these kinds of synthetic images need.

        Raises:
            InputError: no train, val or test images, or synthetic ones of another data set.
        """
        index = self.index
        self._check_labels()
        pictures = (
            pictures_of_index(self.given.index, ALL, 0) if self.given else pictures_of_output(self.synthetic, ALL)
        )
        check_classes(pictures, index, TRAIN)
        view = self._view(pictures)
        real = [self._rows(TRAIN, VAL, name=name) for name in index.classes]
        test = [self._rows(TEST, name=name) for name in index.classes]
        notes = self._notes(real, test, pictures)
        pools = {name: self._load(self._real(rows, view), name, view) for name, rows in ((REAL, real), (TEST, test))}
        synthetic = self._by_kind(pictures, kinds, view)
        pools |= {kind: self._load(images.loaders, kind, view) for kind, images in synthetic.items()}
        return Material(
            classes=index.classes,
            poor=tuple(label for label, name in enumerate(index.classes) if pictures.get(name)),
            n_real=np.array(list(index.counts(TRAIN).values())),
            pools=grayed(pools),
            real_ids=np.concatenate(real),
            made_from={kind: self.held_out.ids_of(images.provenances) for kind, images in synthetic.items()},
            held_out=self.held_out,
            notes=notes,
        )

    def _view(self, pictures: Mapping[str, Sequence[Picture]]) -> View:
        """Return the view of all images; real ones go through the synthetic ones' file format, if all have one."""
        view = view_of(pictures, self.manifest, self.square)
        return replace(view, encoding=self.given.encoding) if self.given else view

    def _by_kind(
        self, pictures: Mapping[str, Sequence[Picture]], kinds: Collection[str], view: View
    ) -> dict[str, SyntheticImages]:
        """Return the output's images, and those of other kinds that are wanted."""
        images = {FILTERED: self._images(pictures, view)}
        if UNFILTERED in kinds:
            images[UNFILTERED] = self._images(pictures_of_output(self._make_unfiltered(), ALL), view)
        if CONTROL in kinds:
            images[CONTROL] = self._control(pictures, view)
        return images

    def _rows(self, *splits: str, name: str) -> np.ndarray:
        """Return the ids of the usable images of a class in some splits, ascending."""
        return np.sort(np.concatenate([self.index.rows(split, name) for split in splits]))

    def _check_labels(self) -> None:
        """Check that the output's labels are the data set's."""
        of_output = [row.class_name for row in self.manifest.classes] if self.manifest else []
        if self.manifest and of_output != list(self.index.classes):
            pairs = zip(of_output, self.index.classes, strict=False)
            label = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(of_output), len(self.index.classes)))
            theirs, ours = ((names[label : label + 1] or ["nothing"])[0] for names in (of_output, self.index.classes))
            raise InputError(
                f"`synthetic` was made for another data set: its label {label} is {theirs!r}, in `data` it is {ours!r}",
                remedy="Name the data set that the run was fitted on",
            )

    def _real(self, by_class: Sequence[np.ndarray], view: View) -> list[list[Loader]]:
        def load(row: int) -> np.ndarray:
            return view.of_real(self.index.load(row))

        return [[functools.partial(load, row) for row in rows.tolist()] for rows in by_class]

    def _images(self, pictures: Mapping[str, Sequence[Picture]], view: View) -> SyntheticImages:
        def load(picture: Picture) -> np.ndarray:
            return view.of_synthetic(picture.load())

        by_class = [pictures.get(name, ()) for name in self.index.classes]
        return SyntheticImages(
            [[functools.partial(load, picture) for picture in of_class] for of_class in by_class],
            [picture.provenance for of_class in by_class for picture in of_class],
        )

    def _load(self, loaders: Sequence[Sequence[Loader]], name: str, view: View) -> Pool:
        return load_pool(loaders, (view.size_px, view.size_px, 3), name, self.progress)

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
                    f"`data` has no {split} images",
                    remedy="A study trains on train, chooses on val and reports on test: give it all three",
                )
        notes = [
            f"class {name!r} has no {split} images: {consequence}"
            for split, counts, consequence in (
                (VAL, n_val, "no choice sees it"), (TEST, n_test, "it counts in no figure"),
            )
            for name, n in zip(self.index.classes, counts, strict=True)
            if not n
        ]  # fmt: skip
        selection = self.manifest.request.selection if self.manifest else None
        without = {*selection.counts, *selection.withheld} - pictures.keys() if selection else set[str]()
        notes += [f"class {name!r} has no synthetic images" for name in self.index.classes if name in without]
        every = (picture.provenance for of_class in pictures.values() for picture in of_class)
        if self.held_out.changes and not all(map(self.held_out.can_trace, every)):
            notes.append(
                "val is held out of train, and `synthetic` may have been made from it: choices may favour its images"
            )
        return tuple(notes)

    def _make_unfiltered(self) -> Path:
        """Make as many images as the output has, without a filter, with the same seed and format."""
        if self.manifest is None:
            raise InputError("unfiltered images need the output that a run made")
        settings, real = self.manifest.request.settings, self.index.counts(TRAIN)
        made = {name: n for name, n in self.manifest.counts().items() if n}
        quality = settings.quality or OutputOptions.quality
        out = self.results / UNFILTERED
        shards.generate(
            self._run().directory.path,
            out,
            balance={name: real[name] + n for name, n in made.items()},
            output=OutputOptions(file_format=settings.file_format, quality=quality, seed=settings.seed),
            filtering=FilterChoice(filter_images=False),
            data=self.index.root,
            device=str(self.device.type),
            progress=self.progress,
        )
        return out

    def _control(self, pictures: Mapping[str, Sequence[Picture]], view: View) -> SyntheticImages:
        """Return the output's images, and for each class that has none translations of its own, at most as many."""
        run, most, n_real = self._run(), max(map(len, pictures.values())), self.index.counts(TRAIN)
        loaders: list[list[Loader]] = []
        provenances: list[Provenance] = []
        for label, name in enumerate(self.index.classes):
            if pictures.get(name):
                of_class = self._images({name: pictures[name]}, view)
                loaders.append(of_class.loaders[label])
                provenances += of_class.provenances
                continue
            n = min(most, n_real[name])
            translated = list(rich_translations(run, name, n, run.recipe.seed, self.device))
            loaders.append([functools.partial(_through, view, image.pixels) for image in translated])
            provenances += [image.provenance for image in translated]
        return SyntheticImages(loaders, provenances)

    def _run(self) -> LoadedRun:
        if self.run is None:
            raise InputError("arms with unfiltered or control images need `run`: the run that made `synthetic`")
        return self.run


def _through(view: View, pixels: np.ndarray) -> np.ndarray:
    """Bring made pixels through the output's file format and into the view."""
    if view.encoding is None:
        return view.of_synthetic(Image.fromarray(pixels.squeeze()))
    return view.of_synthetic(Image.open(io.BytesIO(imaging.encode(pixels, *view.encoding))))
