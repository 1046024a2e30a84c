"""`load_shards`: shards as a torch data set."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import webdataset
from PIL import Image
from torch.utils.data import IterableDataset

from rebalance import imaging, storage
from rebalance.errors import DamagedError, InputError
from rebalance.planning.tuned import read_tuned
from rebalance.shards.names import MANIFEST, ShardName
from rebalance.shards.records import Manifest, SampleRecord, read_manifest, synthetic_tars

_IMAGE_KEYS = ("jpg", "png", "webp")


@dataclass(frozen=True)
class SampleWeights:
    """Weights with which a class's synthetic images get a wanted share of its mass, 1 on average.

    Attributes:
        synthetic: of a synthetic image, by class.
        real: of a real one.
    """

    synthetic: Mapping[str, float]
    real: Mapping[str, float]

    def of(self, record: SampleRecord) -> float:
        """Return the weight of a sample; 1 in classes without a wanted share."""
        return (self.synthetic if record.synthetic else self.real).get(record.class_name, 1.0)


class ShardDataset(IterableDataset[tuple[Any, ...]]):
    """Samples of shards as (image, label) or (image, label, weight); see `load_shards`."""

    def __init__(
        self,
        tars: list[Path],
        n_images: int,
        transform: Callable[[Image.Image], Any] | None,
        shuffle: int,
        seed: int,
        even: bool,
        weights: SampleWeights | None,
    ) -> None:
        self.weights = weights
        self.tars, self.n_images, self.transform = tars, n_images, transform
        self.shuffle, self.seed, self.even = shuffle, seed, even
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order, as for `DistributedSampler`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield this rank's and worker's share: every sample goes to exactly one."""
        rank, ranks = _rank()
        worker = torch.utils.data.get_worker_info()
        workers = worker.num_workers if worker else 1
        consumer, consumers = (worker.id if worker else 0) * ranks + rank, workers * ranks
        last = self.n_images // consumers * consumers if self.even else None
        tars = list(self.tars)
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(tars)
        samples: Any = itertools.islice(_samples(tars), consumer, last, consumers)
        if self.shuffle:
            order = random.Random(f"{self.seed}/{self.epoch}/{consumer}")
            samples = webdataset.shuffle(self.shuffle, rng=order)(samples)
        for sample in samples:
            yield self._decoded(sample)

    def _decoded(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        picture = _picture(sample)
        image, label = self.transform(picture) if self.transform else picture, int(sample["cls"])
        return (
            (image, label)
            if self.weights is None
            else (image, label, self.weights.of(SampleRecord.from_json(sample["json"])))
        )


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def load_shards(
    out: str | Path,
    transform: Callable[[Image.Image], Any] | None = None,
    *,
    shuffle: int = 0,
    seed: int = 0,
    even: bool = False,
    weights: str | Path | Mapping[str, float] | None = None,
) -> ShardDataset:
    """Return the samples of a complete output; see `rebalance.api.load_shards`."""
    out = storage.existing_folder(Path(out), "out")
    if not storage.is_file(out / MANIFEST):
        raise InputError(
            f"`out` is not complete: it has no {MANIFEST}",
            value=str(out),
            remedy="Run the command that began it again",
        )
    manifest = read_manifest(out)
    sample_weights = None if weights is None else _sample_weights(weights, manifest)
    tars = _tars(out, [row.shard for row in manifest.shards])
    return ShardDataset(tars, manifest.images, transform, shuffle, seed, even, sample_weights)


def _sample_weights(weights: str | Path | Mapping[str, float], manifest: Manifest) -> SampleWeights:
    shares = weights if isinstance(weights, Mapping) else read_tuned(Path(weights)).shares
    rows = {row.class_name: row for row in manifest.classes}
    synthetic, real = {}, {}
    for name, share in shares.items():
        if name not in rows:
            raise InputError(f"`weights` name an unknown class {name!r}", allowed=", ".join(rows))
        if not 0 < share < 1:
            raise InputError(f"`weights`: share of class {name!r}", value=share, allowed="a number between 0 and 1")
        n_synthetic, n_real = rows[name].synthetic, rows[name].real
        if not (n_synthetic and n_real):
            raise InputError(
                f"`weights`: class {name!r} has {n_synthetic} synthetic and {n_real} real images, a share needs both",
                remedy="Generate with `include_real`",
            )
        total = n_synthetic + n_real
        synthetic[name], real[name] = share * total / n_synthetic, (1 - share) * total / n_real
    return SampleWeights(synthetic, real)


def _tars(out: Path, names: Sequence[str]) -> list[Path]:
    """Return shards of a manifest, absolute, because WebDataset takes `a:b` for a URL and `pipe:` for a command.

    Raises:
        DamagedError: a name that is not a shard's.
        InputError: one is missing.
    """
    for name in names:
        shard = ShardName.of_file(name)
        if shard is None or shard.tar != name:
            raise DamagedError(f"{out / MANIFEST} lists {name!r}, which is no shard")
    missing = [name for name in names if not storage.is_file(out / name)]
    if missing:
        raise InputError("shards are missing", value=missing[:5], remedy="Run the command that began it again")
    return [(out / name).absolute() for name in names]


def _samples(tars: Sequence[Path]) -> Iterable[dict[str, Any]]:
    """Read samples in order; each consumer takes its share itself. There may be no shard, and no sample in one."""
    if not tars:
        return ()
    samples: Iterable[dict[str, Any]] = webdataset.WebDataset(
        [str(tar) for tar in tars], shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
    )
    return samples


def _picture(sample: Mapping[str, Any]) -> Image.Image:
    return imaging.decode(next(sample[key] for key in _IMAGE_KEYS if key in sample))


@dataclass(frozen=True)
class ShardImage:
    """A synthetic image of a shard.

    Attributes:
        picture: the image.
        record: what its JSON says.
    """

    picture: Image.Image
    record: SampleRecord

    @property
    def pixels(self) -> np.ndarray:
        """The image as (H, W, C) uint8."""
        return np.asarray(self.picture).reshape(*self.picture.size[::-1], -1)


def read_synthetic(out: Path) -> Iterator[ShardImage]:
    """Yield the synthetic images of a complete output.

    Raises:
        DamagedError: a manifest or a sample is damaged.
    """
    for sample in _samples(_tars(out, synthetic_tars(read_manifest(out)))):
        yield ShardImage(_picture(sample), SampleRecord.from_json(sample["json"]))
