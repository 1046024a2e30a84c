"""Decoded images and the batches drawn from them; batch t is a pure function of (seed, t)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rebalance import files, images
from rebalance.config import DataOptions
from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex
from rebalance.methods import PairBatch
from rebalance.modalities import ImageBatch
from rebalance.ranks import Ranks

logger = logging.getLogger(__name__)

_ENCODER_STREAM, _PAIR_STREAM = 1, 2


def step_rng(seed: int, stream: int, step: int) -> np.random.Generator:
    """Return the generator of one step: counter-based, so that any step can be entered directly."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))


@dataclass(frozen=True)
class ImageStore:
    """The model's squares of a set of images, decoded once.

    Attributes:
        image_ids: (n,) int64, ascending.
        pixels: (n, H, W, C) uint8, in memory or mapped from a file.
    """

    image_ids: np.ndarray
    pixels: np.ndarray

    def positions(self, image_ids: np.ndarray) -> np.ndarray:
        """Return where images lie in `pixels`."""
        return np.searchsorted(self.image_ids, image_ids)

    def tensor(self, positions: np.ndarray) -> torch.Tensor:
        """Return images at positions (B,) as (B, C, H, W) float32 in [-1, 1]."""
        return images.to_float(torch.from_numpy(self.pixels[positions]))


def build_store(
    index: ImageIndex, image_ids: np.ndarray, options: DataOptions, cache: Path, progress: bool = False
) -> ImageStore:
    """Decode images into memory, or into a mapped file below `cache` when they exceed `data.memory_gib`.

    Args:
        index: the data set.
        image_ids: (n,) ascending ids.
        options: size, channels and squaring.
        cache: folder for the mapped file.
        progress: show a progress bar on stderr.
    """
    shape = (len(image_ids), options.size_px, options.size_px, options.channels)
    if np.prod(shape, dtype=np.int64) <= options.memory_gib * 2**30:
        pixels = np.empty(shape, np.uint8)
        _decode_into(pixels, index, image_ids, options, progress)
        return ImageStore(image_ids, pixels)
    key = files.sha256_bytes(f"{index.fingerprint}{options}{image_ids.tolist()}".encode())[:16]
    path, seal = cache / f"pixels-{key}.npy", cache / f"pixels-{key}.json"
    if not _is_intact(path, seal):
        with files.atomic_path(path) as temporary:
            mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            with open(temporary, "r+b") as file:
                # Else a full disk would end the process by a signal when a page is first touched.
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            _decode_into(mapped, index, image_ids, options, progress)
            mapped.flush()
        files.write_sealed_json(seal, {"sha256": files.sha256_file(path)})
    return ImageStore(image_ids, np.load(path, mmap_mode="r", allow_pickle=False))


def _is_intact(path: Path, seal: Path) -> bool:
    """Whether decoded images of an earlier sitting are as they were written."""
    if not (path.is_file() and seal.is_file()):
        return False
    try:
        intact = files.read_sealed_json(seal)["sha256"] == files.sha256_file(path)
    except DamagedError:
        intact = False
    if not intact:
        logger.warning("%s is damaged; it is made again", path)
    return intact


def _decode_into(
    pixels: np.ndarray, index: ImageIndex, image_ids: np.ndarray, options: DataOptions, progress: bool
) -> None:
    def decode(position: int) -> None:
        pixels[position] = index.square(int(image_ids[position]), options)

    with ThreadPoolExecutor() as pool:
        done = pool.map(decode, range(len(image_ids)))
        for _ in tqdm(done, total=len(image_ids), desc="decode", unit="img", disable=not progress, leave=False):
            pass


@dataclass(frozen=True)
class EncoderBatches:
    """Batches of distinct images, drawn uniformly over all."""

    store: ImageStore
    batch: int
    seed: int

    def __call__(self, step: int) -> ImageBatch:
        """Return the batch of a step."""
        n = len(self.store.image_ids)
        chosen = step_rng(self.seed, _ENCODER_STREAM, step).choice(n, min(self.batch, n), replace=False)
        return ImageBatch(self.store.tensor(chosen))


@dataclass(frozen=True)
class ClassPool:
    """The images of one data-set class by translator class.

    Attributes:
        name: the data-set class.
        labels: translator class of each modality.
        positions: the store positions of each modality's images.
    """

    name: str
    labels: tuple[int, ...]
    positions: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class PairBatches:
    """Source and reference, drawn independently: class uniformly, then modality, then image.

    Attributes:
        store: the images.
        pools: the classes that are drawn from.
        related: (n, n) bool, which classes are paired.
        draw: "classes" draws classes uniformly, "modalities" draws modalities uniformly.
        batch: pairs a step.
        seed: seed of all draws.
        per_class: consecutive pairs whose references are of one class.
        ranks: who shares the batch; all draw the same, and load their own pairs of it.
    """

    store: ImageStore
    pools: tuple[ClassPool, ...]
    related: np.ndarray
    draw: str
    batch: int
    seed: int
    per_class: int = 1
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        """Refuse an empty pool, because a loop over nothing would never end, and a batch that cannot be shared."""
        self.ranks.share_of(self.batch, "training.batch", self.per_class)
        for pool in self.pools:
            if not pool.positions or any(len(positions) == 0 for positions in pool.positions):
                raise InputError(f"class {pool.name!r} has no image to train on")

    def __call__(self, step: int) -> PairBatch:
        """Return the batch of a step, or this process's share of it."""
        rng = step_rng(self.seed, _PAIR_STREAM, step)
        everyone = np.arange(len(self.pools))
        drawn = []
        for number in range(self.batch):
            if number % self.per_class == 0:
                reference = self._draw_class(rng, everyone)
            source = self._draw_class(rng, np.flatnonzero(self.related[reference]))
            drawn.append((*self._draw_image(rng, source), *self._draw_image(rng, reference)))
        own = drawn[self.ranks.share_of(self.batch, "training.batch", self.per_class)]
        sources, source_labels, references, reference_labels = map(np.array, zip(*own, strict=True))
        return PairBatch(
            self.store.tensor(sources),
            torch.from_numpy(source_labels),
            self.store.tensor(references),
            torch.from_numpy(reference_labels),
        )

    def _draw_class(self, rng: np.random.Generator, candidates: np.ndarray) -> int:
        if self.draw == "classes":
            return int(rng.choice(candidates))
        sizes = np.array([len(self.pools[i].labels) for i in candidates])
        return int(rng.choice(candidates, p=sizes / sizes.sum()))

    def _draw_image(self, rng: np.random.Generator, number: int) -> tuple[int, int]:
        pool = self.pools[number]
        modality = int(rng.integers(len(pool.labels)))
        return int(rng.choice(pool.positions[modality])), pool.labels[modality]


@contextlib.contextmanager
def prefetched(batch_at: Callable[[int], Any], first: int, last: int, pin: bool) -> Iterator[Iterator[Any]]:
    """Yield an iterator over batches first, first + 1, ... last - 1, each made on a thread while the former is used."""

    def make(step: int) -> Any:
        batch = batch_at(step)
        return batch.pin_memory() if pin else batch

    def batches(pool: ThreadPoolExecutor) -> Iterator[Any]:
        waiting: list[Future[Any]] = [pool.submit(make, step) for step in range(first, min(first + 2, last))]
        for step in range(first, last):
            batch = waiting.pop(0).result()
            if step + 2 < last:
                waiting.append(pool.submit(make, step + 2))
            yield batch

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        yield batches(pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def make_pools(
    class_names: Sequence[str], label_of: Callable[[str], Sequence[tuple[int, np.ndarray]]], store: ImageStore
) -> tuple[ClassPool, ...]:
    """Build the pools of classes.

    Args:
        class_names: the data-set classes.
        label_of: maps a class to its (translator class, image ids) pairs.
        store: where the images lie.
    """
    pools = []
    for name in class_names:
        pairs = label_of(name)
        pools.append(
            ClassPool(name, tuple(label for label, _ in pairs), tuple(store.positions(ids) for _, ids in pairs))
        )
    return tuple(pools)
