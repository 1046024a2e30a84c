"""Filling a shard: images are judged class by class, the accepted ones encoded, the others counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from rebalance.engines.work import Count
from rebalance.filtering import (
    ClassCalibration,
    Evidence,
    ImageFilter,
    RealMoments,
    Scores,
    Verdict,
    filters_of,
    real_moments_of,
)
from rebalance.shards.contents import Sample, ShardContents
from rebalance.shards.shard_moments import moments_of


class JudgedImage(Protocol):
    """An image with its features; None where nothing asks for them."""

    @property
    def features(self) -> np.ndarray | None:
        """(D,) float32."""


Image = TypeVar("Image", bound=JudgedImage)
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Limits:
    """What images of a request must pass, and what their distance is measured to.

    Attributes:
        filters: of each class that has one.
        real: moments of the real train images of each class that has them.
    """

    filters: Mapping[str, ImageFilter]
    real: Mapping[str, RealMoments]

    @classmethod
    def of(cls, calibrations: Mapping[str, ClassCalibration]) -> Limits:
        """Return the limits that were calibrated."""
        of_classes = list(calibrations.values())
        return cls(filters_of(of_classes), real_moments_of(of_classes))


@dataclass(frozen=True)
class Judging(Generic[Image, Key]):
    """How the images of an output are judged and encoded.

    Attributes:
        limits: what images must pass; a class without a filter keeps all.
        threads: CPU threads of a process, on which moments depend.
        key_of: what tells an image from the others of its shard.
        class_of: the class of an image.
        evidence_of: what is known of images of one class.
        sample_of: encodes an accepted image.
    """

    limits: Limits
    threads: int
    key_of: Callable[[Image], Key]
    class_of: Callable[[Image], str]
    evidence_of: Callable[[Sequence[Image]], Evidence]
    sample_of: Callable[[Image, Scores], Sample]

    def verdicts(self, batch: Iterable[Image]) -> Iterator[tuple[Image, Scores, Verdict]]:
        """Score and judge images, class by class."""
        by_class: dict[str, list[Image]] = {}
        for image in batch:
            by_class.setdefault(self.class_of(image), []).append(image)
        for class_name, members in by_class.items():
            image_filter = self.limits.filters.get(class_name)
            if image_filter is None:
                yield from ((image, Scores(), Verdict()) for image in members)
                continue
            scored = image_filter.scores(self.evidence_of(members))
            yield from ((image, s, image_filter.judge(s)) for image, s in zip(members, scored, strict=True))


class ShardFiller(Generic[Image, Key]):
    """Collects the samples of one shard, batch by batch.

    Args:
        judging: how images are judged and encoded.
        pool: threads that encode. One is given a whole batch, because every hop between threads holds up the one that
            computes.
        count: is told of the numbers of accepted images, and of rejected ones by reason, as they come.
    """

    def __init__(self, judging: Judging[Image, Key], pool: ThreadPoolExecutor, count: Count) -> None:
        self.judging, self._pool, self._count = judging, pool, count
        self._encoded: list[Future[dict[Key, Sample]]] = []
        self._features: dict[Key, tuple[str, np.ndarray]] = {}
        self._rejects: dict[str, Counter[str]] = {}
        self.filled: set[Key] = set()

    def add(self, batch: Iterable[Image]) -> None:
        """Judge images, and take in those that are accepted."""
        accepted: list[tuple[Image, Scores]] = []
        rejected = Counter[str]()
        for image, scores, verdict in self.judging.verdicts(batch):
            class_name, key = self.judging.class_of(image), self.judging.key_of(image)
            if not verdict.accepted:
                self._rejects.setdefault(class_name, Counter())[verdict.reason] += 1
                rejected[verdict.reason] += 1
                continue
            accepted.append((image, scores))
            self.filled.add(key)
            if image.features is not None:
                self._features[key] = class_name, image.features
        self._encoded.append(self._pool.submit(self._samples, accepted))
        self._count(len(accepted), rejected)

    def _samples(self, accepted: Sequence[tuple[Image, Scores]]) -> dict[Key, Sample]:
        return {self.judging.key_of(image): self.judging.sample_of(image, scores) for image, scores in accepted}

    def contents(self, order: Sequence[Key], shortfall: Mapping[str, int]) -> ShardContents:
        """Return the shard's contents.

        Args:
            order: keys of all images that it could hold, in the order of its samples.
            shortfall: slots of each class that stayed empty.
        """
        samples = {key: sample for batch in self._encoded for key, sample in batch.result().items()}
        features = [self._features[key] for key in order if key in self._features]
        return ShardContents(
            [samples[key] for key in order if key in samples],
            {class_name: dict(reasons) for class_name, reasons in self._rejects.items()},
            shortfall,
            moments_of(features, self.judging.limits.real, self.judging.threads),
        )
