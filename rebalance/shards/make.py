"""Making one shard: a pure function of the request and the shard's number."""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from rebalance import files, images
from rebalance.features import FeatureExtractor
from rebalance.filtering import ImageFilter, Scores, Verdict, Yardstick, evidence_of
from rebalance.frechet import StreamingMoments
from rebalance.generation import (
    Candidate,
    LoadedRun,
    Made,
    Slot,
    Slots,
    Synthesizer,
    candidate_stream,
    keyed_rng,
    slots_by_model,
)
from rebalance.shards.moments import moments_of, write_moments
from rebalance.shards.request import REAL, SYNTHETIC, GenerationRequest

ORDINAL_DIGITS = 9
CLASS_DIGITS = 5

SHARD_NAME = re.compile(rf"({SYNTHETIC}|{REAL})-\d{{6,}}\.tar")
"""Names that shards have."""

REFERENCES = " | "
"""Stands between the names of an image's references."""

Sample = dict[str, Any]

_THREADS = 2
"""Threads that draw, decode and encode beside the one that computes."""


@dataclass(frozen=True)
class ShardName:
    """Kind and number of a shard, and its file names."""

    kind: str
    number: int

    @property
    def tar(self) -> str:
        """Name of the tar file."""
        return f"{self.kind}-{self.number:06d}.tar"

    @property
    def marker(self) -> str:
        """Name of the done-marker."""
        return f"{self.kind}-{self.number:06d}.json"

    @property
    def moments(self) -> str:
        """Name of the file with the moments of its images."""
        return f"{self.kind}-{self.number:06d}.moments.safetensors"


Count = Callable[[int, Mapping[str, int]], None]
"""Is told of finished images, and of rejected ones by reason, since it was last called."""


@dataclass(frozen=True)
class ShardContents:
    """The samples of a shard in order, what was rejected on the way, and the moments of what was kept, by class."""

    samples: list[Sample]
    rejects: dict[str, dict[str, int]]
    shortfall: dict[str, int]
    moments: Mapping[str, StreamingMoments] = field(default_factory=dict)


class ShardMaker:
    """Makes shards of one request, one after another, in one process."""

    def __init__(
        self,
        run: LoadedRun,
        request: GenerationRequest,
        filters: Mapping[str, ImageFilter],
        yardsticks: Mapping[str, Yardstick],
        extractor: FeatureExtractor | None,
        out: Path,
        device: torch.device,
    ) -> None:
        self.run, self.request, self.filters, self.yardsticks, self.out = run, request, filters, yardsticks, out
        self.synthesizer = Synthesizer(run, device, extractor)
        self.stream = candidate_stream(request.fingerprint, run.index, run.plan, run.recipe)
        self.slots = Slots(request.counts, request.shard_size, request.fingerprint)

    def names(self) -> list[ShardName]:
        """Return all shards of the output."""
        real = -(-len(self.real_images) // self.request.shard_size)
        synthetic = [ShardName(SYNTHETIC, number) for number in range(self.slots.n_shards)]
        return synthetic + [ShardName(REAL, number) for number in range(real)]

    @cached_property
    def real_rows(self) -> dict[str, np.ndarray]:
        """Ids of the real train images of each class, ascending."""
        return {name: self.run.index.rows("train", name) for name in self.run.index.classes}

    @cached_property
    def real_images(self) -> np.ndarray:
        """Ids of the real train images of all classes in a seeded order; empty unless asked for."""
        if not self.request.include_real:
            return np.zeros(0, np.int64)
        rows = np.concatenate(list(self.real_rows.values()))
        keyed_rng(self.request.fingerprint, REAL).shuffle(rows)
        return rows

    def make(self, names: Iterable[ShardName], count: Count) -> None:
        """Make shards one after another, each with its marker; one is written while the next is made.

        Args:
            names: which ones.
            count: is told the numbers of finished images, and of rejected ones by reason, as they come.
        """
        with ThreadPoolExecutor(max_workers=_THREADS) as pool, ThreadPoolExecutor(max_workers=1) as writer:
            writing: Future[None] | None = None
            for name in names:
                contents = self._real(name, pool, count) if name.kind == REAL else self._synthetic(name, pool, count)
                if writing is not None:
                    writing.result()  # so that no more than two shards are in memory
                writing = writer.submit(write_shard, self.out, name, self.request.fingerprint, contents)
            if writing is not None:
                writing.result()

    def _synthetic(self, name: ShardName, pool: ThreadPoolExecutor, count: Count) -> ShardContents:
        """Fill the shard's slots in rounds: every open slot tries its next candidate."""
        slots = self.slots.of_shard(name.number)
        encoded: list[Future[dict[Slot, Sample]]] = []
        features: dict[Slot, np.ndarray] = {}
        rejects: dict[str, Counter[str]] = {}
        open_slots, number = slots, 0
        while open_slots and number < self.run.recipe.generation.max_candidates:
            filled: set[Slot] = set()
            for made in self._made(open_slots, number, pool):
                accepted, rejected = [], Counter[str]()
                for image, scores, verdict in self._judged(made):
                    if verdict.accepted:
                        accepted.append((image, scores))
                        if image.features is not None:
                            features[image.candidate.slot] = image.features
                    else:
                        rejects.setdefault(image.candidate.slot.class_name, Counter())[verdict.reason] += 1
                        rejected[verdict.reason] += 1
                filled.update(image.candidate.slot for image, _ in accepted)
                encoded.append(pool.submit(self._samples, accepted))
                count(len(accepted), rejected)
            open_slots = [slot for slot in open_slots if slot not in filled]
            number += 1
        count(len(open_slots), {})
        samples = {slot: sample for batch in encoded for slot, sample in batch.result().items()}
        kept = [(slot.class_name, features[slot]) for slot in slots if slot in features]
        return ShardContents(
            [samples[slot] for slot in slots if slot in samples],
            {class_name: dict(reasons) for class_name, reasons in rejects.items()},
            dict(Counter(slot.class_name for slot in open_slots)),
            moments_of(kept, self.yardsticks, self.run.recipe.generation.threads),
        )

    def _made(self, slots: list[Slot], number: int, pool: ThreadPoolExecutor) -> Iterator[list[Made]]:
        """Make a candidate of each slot, batch by batch; the next ones are drawn and decoded meanwhile.

        A thread is given a whole batch, because every hop between threads holds up the one that computes.
        """

        def prepared(batch: list[Slot]) -> tuple[list[Candidate], list[np.ndarray]]:
            candidates = [self.stream.draw(slot, number) for slot in batch]
            return candidates, [self.synthesizer.load(candidate.source) for candidate in candidates]

        waiting: deque[Future[tuple[list[Candidate], list[np.ndarray]]]] = deque()
        for batch in slots_by_model(self.run, slots, self.synthesizer.batch):
            waiting.append(pool.submit(prepared, batch))
            if len(waiting) > _THREADS:
                yield self.synthesizer.make(*waiting.popleft().result())
        while waiting:
            yield self.synthesizer.make(*waiting.popleft().result())

    def _judged(self, batch: list[Made]) -> Iterator[tuple[Made, Scores, Verdict]]:
        """Score and judge a batch, class by class."""
        by_class: dict[str, list[Made]] = {}
        for made in batch:
            by_class.setdefault(made.candidate.slot.class_name, []).append(made)
        for class_name, members in by_class.items():
            found = self.filters.get(class_name)
            if found is None:
                yield from ((made, Scores(), Verdict()) for made in members)
                continue
            scored = found.scores(evidence_of(members, self.synthesizer))
            yield from ((made, scores, found.judge(scores)) for made, scores in zip(members, scored, strict=True))

    def _samples(self, accepted: list[tuple[Made, Scores]]) -> dict[Slot, Sample]:
        return {made.candidate.slot: self._sample(made, scores) for made, scores in accepted}

    def _sample(self, made: Made, scores: Scores) -> Sample:
        candidate, index = made.candidate, self.run.index
        slot = candidate.slot
        fields = self._fields(slot.class_name, made.pixels, scores) | {
            "synthetic": True,
            "method": self.run.recipe.method,
            "source": index.name(candidate.source),
            "source_class": str(index.column("class")[candidate.source]),
            "reference": REFERENCES.join(index.name(reference) for reference in candidate.references),
            "modality": self._modality(candidate.source),
            "candidate": candidate.number,
        }
        return self._encoded(slot.class_name, slot.ordinal, made.pixels, fields)

    def _real(self, name: ShardName, pool: ThreadPoolExecutor, count: Count) -> ShardContents:
        first = name.number * self.request.shard_size
        chosen = self.real_images[first : first + self.request.shard_size].tolist()
        samples = []
        for sample in pool.map(self._real_sample, chosen):
            samples.append(sample)
            count(1, {})
        return ShardContents(samples, {}, {})

    def _real_sample(self, image_id: int) -> Sample:
        class_name = str(self.run.index.column("class")[image_id])
        pixels = self.synthesizer.load(image_id)
        fields = self._fields(class_name, pixels, Scores()) | {
            "synthetic": False,
            "method": "real",
            "source": self.run.index.name(image_id),
            "source_class": class_name,
            "reference": "",
            "modality": self._modality(image_id),
            "candidate": -1,
        }
        # After the synthetic ordinals, so that keys are unique over the whole output.
        position = int(np.searchsorted(self.real_rows[class_name], image_id))
        return self._encoded(class_name, self.request.counts.get(class_name, 0) + position, pixels, fields)

    def _modality(self, image_id: int) -> int:
        modality = self.run.modalities.of_image(image_id)
        return self.run.modalities.table[modality].number if modality >= 0 else -1

    def _fields(self, class_name: str, pixels: np.ndarray, scores: Scores) -> dict[str, Any]:
        height, width = pixels.shape[:2]
        return {
            "class": class_name,
            "label": self.run.index.label(class_name),
            "run": self.request.fingerprint,
            "seed": self.request.seed,
            "scores": dict(vars(scores)),
            "width": width,
            "height": height,
        }

    def _encoded(self, class_name: str, ordinal: int, pixels: np.ndarray, fields: dict[str, Any]) -> Sample:
        label = self.run.index.label(class_name)
        return {
            "__key__": f"{label:0{CLASS_DIGITS}d}-{ordinal:0{ORDINAL_DIGITS}d}",
            self.request.file_format: images.encode(pixels, self.request.file_format, self.request.quality),
            "cls": str(label),
            "json": fields,
        }


def write_shard(out: Path, name: ShardName, fingerprint: str, contents: ShardContents) -> None:
    """Write a shard, the moments of its images, and then its marker."""
    tar = tar_bytes(contents.samples)
    files.write_bytes(out / name.tar, tar)
    marker = {
        "shard": name.tar,
        "fingerprint": fingerprint,
        "images": len(contents.samples),
        "counts": dict(Counter(sample["json"]["class"] for sample in contents.samples)),
        "rejects": contents.rejects,
        "shortfall": contents.shortfall,
        "moments": write_moments(out / name.moments, contents.moments),
        "bytes": len(tar),
        "sha256": files.sha256_bytes(tar),
    }
    files.write_sealed_json(out / name.marker, marker)


def tar_bytes(samples: list[Sample]) -> bytes:
    """Return a tar file of samples without times and owners, so that equal samples give equal bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(
                {**sample, "cls": sample["cls"].encode(), "json": files.canonical_json(sample["json"]).encode()}
            )
    return buffer.getvalue()
