"""Sifting given images: a shard holds those of its share that pass, a pure function of the request and its number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from rebalance import images
from rebalance.features import FeatureExtractor
from rebalance.filtering import ClassCalibration, Evidence, Scores, Verdict, filters_of, yardsticks_of
from rebalance.filtering.evidence import texture
from rebalance.generation import keyed_rng
from rebalance.shards.given import GivenImages
from rebalance.shards.make import (
    CLASS_DIGITS,
    ORDINAL_DIGITS,
    Count,
    Sample,
    ShardContents,
    ShardName,
    write_shard,
)
from rebalance.shards.moments import moments_of
from rebalance.shards.progress import counting
from rebalance.shards.request import SYNTHETIC, FilterRequest
from rebalance.views import View


@dataclass(frozen=True)
class Looked:
    """An image as it is judged.

    Attributes:
        row: its id.
        pixels: (H, W, 3) uint8, in the view.
        features: (D,) float32.
    """

    row: int
    pixels: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Looker:
    """Looks at given images, batch by batch; the next batch is decoded meanwhile."""

    given: GivenImages
    view: View
    extractor: FeatureExtractor

    def look(self, rows: np.ndarray, pool: ThreadPoolExecutor) -> Iterator[list[Looked]]:
        """Yield images in order."""
        size = self.extractor.batch
        batches = [rows[first : first + size].tolist() for first in range(0, len(rows), size)]
        waiting = self._decoding(batches[0], pool) if batches else []
        for number, batch in enumerate(batches):
            pixels = [future.result() for future in waiting]
            waiting = self._decoding(batches[number + 1], pool) if number + 1 < len(batches) else []
            features = self.extractor.extract(np.stack(pixels))
            yield [Looked(*parts) for parts in zip(batch, pixels, features, strict=True)]

    def _decoding(self, batch: Sequence[int], pool: ThreadPoolExecutor) -> list[Future[np.ndarray]]:
        return [pool.submit(self._pixels, row) for row in batch]

    def _pixels(self, row: int) -> np.ndarray:
        return self.view.of_synthetic(self.given.index.load(row))


def evidence_on(looked: Sequence[Looked]) -> Evidence:
    """Return what is known of images of one class."""
    return Evidence(
        features=np.stack([image.features for image in looked]),
        texture=texture(np.stack([image.pixels for image in looked])),
    )


class Sifter:
    """Makes the shards of one request to `filter`, one after another.

    Args:
        looker: how the images are looked at.
        classes: all classes, in label order.
        request: the request.
        calibrations: of the classes of the images.
        out: the output folder.
    """

    def __init__(
        self,
        looker: Looker,
        classes: Sequence[str],
        request: FilterRequest,
        calibrations: Mapping[str, ClassCalibration],
        out: Path,
    ) -> None:
        self.looker, self.request, self.out = looker, request, out
        self.labels = {name: label for label, name in enumerate(classes)}
        self.filters = filters_of(list(calibrations.values()))
        self.yardsticks = yardsticks_of(list(calibrations.values()))

    @cached_property
    def order(self) -> np.ndarray:
        """Ids of all images of classes that are not withheld, in a seeded order."""
        rows = [self.looker.given.rows[name] for name in self.request.counts]
        order = np.concatenate([np.zeros(0, np.int64), *rows])
        keyed_rng(self.request.fingerprint, "order").shuffle(order)
        return order

    @cached_property
    def _ordinals(self) -> np.ndarray:
        """(n,) the number of each image of `order` within its class, by which its key is unique."""
        classes = self.looker.given.index.column("class")[self.order].astype(str)
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        by_class = np.argsort(numbers, kind="stable")
        ordinals = np.empty(len(by_class), np.int64)
        ordinals[by_class] = np.arange(len(by_class)) - np.repeat(np.cumsum(counts) - counts, counts)
        return ordinals

    def names(self) -> list[ShardName]:
        """Return all shards of the output."""
        return [ShardName(SYNTHETIC, number) for number in range(-(-len(self.order) // self.request.shard_size))]

    def share(self, name: ShardName) -> slice:
        """Return which images of `order` a shard is made of."""
        first = name.number * self.request.shard_size
        return slice(first, min(first + self.request.shard_size, len(self.order)))

    def make_all(self, names: Sequence[ShardName], progress: bool) -> None:
        """Make shards one after another, with a progress bar on stderr if it is wanted."""
        shares = [self.share(name) for name in names]
        with counting("filter", sum(share.stop - share.start for share in shares), progress) as count:
            for name in names:
                self.make(name, count)

    def make(self, name: ShardName, count: Count) -> None:
        """Make a shard, perhaps without any image, and then its marker.

        Args:
            name: which one.
            count: is told the numbers of images judged, and of rejected ones by reason, as they come.
        """
        share = self.share(name)
        rows = self.order[share]
        ordinals = dict(zip(rows.tolist(), self._ordinals[share].tolist(), strict=True))
        kept: dict[int, tuple[Future[Sample], np.ndarray]] = {}
        rejects: dict[str, Counter[str]] = {}
        with ThreadPoolExecutor(max_workers=2) as pool:
            for batch in self.looker.look(rows, pool):
                for class_name, image, scores, verdict in self._judged(batch):
                    if verdict.accepted:
                        sample = pool.submit(self._sample, class_name, image.row, ordinals[image.row], scores)
                        kept[image.row] = sample, image.features
                        count(1, {})
                    else:
                        rejects.setdefault(class_name, Counter())[verdict.reason] += 1
                        count(1, {verdict.reason: 1})
            samples = [kept[row][0].result() for row in rows.tolist() if row in kept]
        features = [kept[row][1] for row in rows.tolist() if row in kept]
        named = zip([sample["json"]["class"] for sample in samples], features, strict=True)
        contents = ShardContents(
            samples,
            {class_name: dict(reasons) for class_name, reasons in rejects.items()},
            {},
            moments_of(named, self.yardsticks, self.request.threads),
        )
        write_shard(self.out, name, self.request.fingerprint, contents)

    def _judged(self, batch: Sequence[Looked]) -> Iterator[tuple[str, Looked, Scores, Verdict]]:
        """Score and judge a batch, class by class."""
        by_class: dict[str, list[Looked]] = {}
        for image in batch:
            by_class.setdefault(str(self.looker.given.index.column("class")[image.row]), []).append(image)
        for class_name, members in by_class.items():
            found = self.filters.get(class_name)
            scored = found.scores(evidence_on(members)) if found else [Scores()] * len(members)
            for image, scores in zip(members, scored, strict=True):
                yield class_name, image, scores, found.judge(scores) if found else Verdict()

    def _sample(self, class_name: str, row: int, ordinal: int, scores: Scores) -> Sample:
        given, label = self.looker.given, self.labels[class_name]
        data = given.index.read(row)
        return {
            "__key__": f"{label:0{CLASS_DIGITS}d}-{ordinal:0{ORDINAL_DIGITS}d}",
            self.request.file_format: data if self.request.original else _as_png(images.decode(data)),
            "cls": str(label),
            "json": {
                **given.provenance(row),
                "class": class_name,
                "label": label,
                "synthetic": True,
                "run": self.request.fingerprint,
                "seed": self.request.seed,
                "scores": asdict(scores),
                "width": int(given.index.column("width")[row]),
                "height": int(given.index.column("height")[row]),
            },
        }


def _as_png(picture: Image.Image) -> bytes:
    return images.encode(np.asarray(picture).reshape(picture.height, picture.width, -1), "png", 0)
