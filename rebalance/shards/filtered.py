"""Making the shards of given images: a shard holds those of its share that pass, by the request and its number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rebalance import imaging
from rebalance.config import FeatureOptions
from rebalance.config.requests import FeatureChoice
from rebalance.engines.work import Count
from rebalance.filtering import Evidence, Scores, evidence_from
from rebalance.generation.slots import keyed_rng
from rebalance.imaging.views import View
from rebalance.measures.features import FeatureExtractor, choose_extractor
from rebalance.runtime.devices import prepared
from rebalance.shards.contents import Sample, ShardContents, write_all
from rebalance.shards.filling import Judging, Limits, ShardFiller
from rebalance.shards.given import GivenImages
from rebalance.shards.names import SYNTHETIC, ShardName
from rebalance.shards.request import FilterRequest
from rebalance.training import encoder_of

_THREADS = 2
"""Threads that decode and encode beside the one that computes."""


@dataclass(frozen=True)
class ViewedImage:
    """A given image in the view in which it is judged.

    Attributes:
        row: its id.
        class_name: its class.
        pixels: (H, W, 3) uint8.
        features: (D,) float32.
    """

    row: int
    class_name: str
    pixels: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class ViewedImages:
    """Given images in one view, with their features."""

    given: GivenImages
    view: View
    extractor: FeatureExtractor

    def batches(self, rows: np.ndarray, pool: ThreadPoolExecutor) -> Iterator[list[ViewedImage]]:
        """Yield images in order, batch by batch; the next batch is decoded meanwhile."""
        size, classes = self.extractor.batch, self.given.index.column("class")
        batches = [rows[first : first + size].tolist() for first in range(0, len(rows), size)]
        waiting = self._decoding(batches[0], pool) if batches else []
        for number, batch in enumerate(batches):
            pixels = [future.result() for future in waiting]
            waiting = self._decoding(batches[number + 1], pool) if number + 1 < len(batches) else []
            features = self.extractor.extract(np.stack(pixels))
            names = [str(classes[row]) for row in batch]
            yield [ViewedImage(*parts) for parts in zip(batch, names, pixels, features, strict=True)]

    def _decoding(self, batch: Sequence[int], pool: ThreadPoolExecutor) -> list[Future[np.ndarray]]:
        return [pool.submit(self._pixels, row) for row in batch]

    def _pixels(self, row: int) -> np.ndarray:
        return self.view.of_synthetic(self.given.index.load(row))


def evidence_on(images: Sequence[ViewedImage]) -> Evidence:
    """Return what is known of images of one class."""
    return evidence_from(np.stack([image.features for image in images]), np.stack([image.pixels for image in images]))


def filter_extractor(choice: FeatureChoice, options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """Build the features in which given images are judged."""
    return choose_extractor(choice.name, options, device, lambda: encoder_of(choice.run, device))


@dataclass(frozen=True)
class FilterWork:
    """What a process needs to make shards of given images.

    Attributes:
        given: the images.
        classes: all classes, in label order.
        view: in which all images are compared.
        features: in which images are judged, as the caller named them.
        feature_options: and with which options.
        request: the request.
        limits: what images must pass.
        out: the output folder.
        device: where to compute.
    """

    given: GivenImages
    classes: tuple[str, ...]
    view: View
    features: FeatureChoice
    feature_options: FeatureOptions
    request: FilterRequest
    limits: Limits
    out: Path
    device: str

    def start(self) -> FilteredShards:
        """Load the features."""
        extractor = filter_extractor(self.features, self.feature_options, prepared(torch.device(self.device)))
        images = ViewedImages(self.given, self.view, extractor)
        return FilteredShards(images, self.classes, self.request, self.limits, self.out)


class FilteredShards:
    """Makes the shards of one request to `filter`, one after another, in one process.

    Args:
        images: the given images.
        classes: all classes, in label order.
        request: the request.
        limits: what images must pass.
        out: the output folder.
    """

    def __init__(
        self, images: ViewedImages, classes: Sequence[str], request: FilterRequest, limits: Limits, out: Path
    ) -> None:
        self.images, self.request, self.out = images, request, out
        self.labels = {name: label for label, name in enumerate(classes)}
        self._limits = limits

    @cached_property
    def order(self) -> np.ndarray:
        """Ids of all images of classes that are not withheld, in a seeded order."""
        rows = [self.images.given.rows[name] for name in self.request.counts]
        order = np.concatenate([np.zeros(0, np.int64), *rows])
        keyed_rng(self.request.fingerprint, "order").shuffle(order)
        return order

    @cached_property
    def _ordinals(self) -> np.ndarray:
        """(n,) the number of each image of `order` within its class, by which its key is unique."""
        classes = self.images.given.index.column("class")[self.order].astype(str)
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        by_class = np.argsort(numbers, kind="stable")
        ordinals = np.empty(len(by_class), np.int64)
        ordinals[by_class] = np.arange(len(by_class)) - np.repeat(np.cumsum(counts) - counts, counts)
        return ordinals

    def names(self) -> list[ShardName]:
        """Return all shards of the output."""
        n_shards = -(-len(self.order) // self.request.settings.shard_size)
        return [ShardName(SYNTHETIC, number) for number in range(n_shards)]

    def _share(self, name: ShardName) -> slice:
        """Return which images of `order` a shard is made of."""
        first = name.number * self.request.settings.shard_size
        return slice(first, min(first + self.request.settings.shard_size, len(self.order)))

    def n_images(self, name: ShardName) -> int:
        """Return how many images are judged for a shard."""
        share = self._share(name)
        return len(self.order[share])

    def make(self, shards: Iterable[ShardName], count: Count) -> None:
        """Make shards one after another, perhaps without any image, each with its marker.

        Args:
            shards: which ones.
            count: is told the numbers of images judged, and of rejected ones by reason, as they come.
        """
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:

            def contents_of(name: ShardName) -> ShardContents:
                return self._contents(name, pool, count)

            write_all(self.out, self.request.fingerprint, shards, contents_of)

    def _contents(self, name: ShardName, pool: ThreadPoolExecutor, count: Count) -> ShardContents:
        share = self._share(name)
        rows = self.order[share]
        ordinals = dict(zip(rows.tolist(), self._ordinals[share].tolist(), strict=True))
        judging: Judging[ViewedImage, int] = Judging(
            limits=self._limits,
            threads=self.request.threads,
            key_of=lambda image: image.row,
            class_of=lambda image: image.class_name,
            evidence_of=evidence_on,
            sample_of=lambda image, scores: self._sample(image, ordinals[image.row], scores),
        )

        def count_judged(accepted: int, rejected: Mapping[str, int]) -> None:
            count(accepted + sum(rejected.values()), rejected)

        filler = ShardFiller(judging, pool, count_judged)
        for batch in self.images.batches(rows, pool):
            filler.add(batch)
        return filler.contents(rows.tolist(), {})

    def _sample(self, image: ViewedImage, ordinal: int, scores: Scores) -> Sample:
        given, settings = self.images.given, self.request.settings
        data = given.index.read(image.row)
        record = replace(
            given.record(image.row),
            class_name=image.class_name,
            label=self.labels[image.class_name],
            synthetic=True,
            run=self.request.fingerprint,
            seed=settings.seed,
            scores=scores.to_json(),
            width=int(given.index.column("width")[image.row]),
            height=int(given.index.column("height")[image.row]),
        )
        encoded = data if self.request.original else _as_png(imaging.decode(data))
        return Sample(ordinal, settings.file_format, encoded, record)


def _as_png(picture: Image.Image) -> bytes:
    return imaging.encode(np.asarray(picture).reshape(picture.height, picture.width, -1), "png", 0)
