"""Making the shards of a run: each is a pure function of the request and its number."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rebalance.config.requests import FeatureChoice
from rebalance.engines.work import Count
from rebalance.filtering import Evidence, evidence_of
from rebalance.generation.candidates import Candidate
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.generation.slots import Slot, Slots, keyed_rng
from rebalance.generation.synthesizer import Made, Synthesizer, slots_by_model
from rebalance.measures.features import FeatureExtractor, choose_extractor
from rebalance.runtime.devices import prepared
from rebalance.shards.contents import Sample, ShardContents, write_all
from rebalance.shards.filling import Judging, Limits, ShardFiller
from rebalance.shards.names import REAL, SYNTHETIC, ShardName
from rebalance.shards.request import GenerationRequest
from rebalance.shards.samples import SampleMaker
from rebalance.training import RunDirectory, encoder_of, load_encoder

_THREADS = 2
"""Threads that draw, decode and encode beside the one that computes."""


def extractor_of(choice: FeatureChoice, run: LoadedRun, device: torch.device) -> FeatureExtractor:
    """Build the features in which images are judged: those chosen, else the recipe's."""
    options = run.recipe.features
    if choice.input_px is not None:
        options = replace(options, input_px=choice.input_px)
    if choice.weights:
        options = replace(options, weights=str(choice.weights))

    def encoder() -> FeatureExtractor:
        if choice.run is not None:
            return encoder_of(choice.run, device)
        return load_encoder(run.directory, run.recipe, device)

    return choose_extractor(choice.name, options, device, encoder)


@dataclass(frozen=True)
class GenerationWork:
    """What a process needs to make shards of a run.

    Attributes:
        run: the run directory.
        data: where its data set is.
        request: the request.
        limits: what images must pass.
        features: in which they are judged.
        out: the output folder.
        device: where to compute.
    """

    run: Path
    data: str
    request: GenerationRequest
    limits: Limits
    features: FeatureChoice
    out: Path
    device: str

    def start(self) -> GeneratedShards:
        """Load the run, its models and the features."""
        device = prepared(torch.device(self.device))
        run = load_run(RunDirectory(self.run), self.data, device)
        extractor = extractor_of(self.features, run, device) if self.limits.real else None
        return GeneratedShards(run, self.request, self.limits, Synthesizer(run, device, extractor), self.out)


class GeneratedShards:
    """Makes shards of one request, one after another, in one process.

    Args:
        run: the run.
        request: the request.
        limits: what images must pass.
        synthesizer: makes images of candidates, with features where they are judged.
        out: the output folder.
    """

    def __init__(
        self, run: LoadedRun, request: GenerationRequest, limits: Limits, synthesizer: Synthesizer, out: Path
    ) -> None:
        self.run, self.request, self.synthesizer, self.out = run, request, synthesizer, out
        self.stream = run.candidate_stream(request.fingerprint)
        self.slots = Slots(request.counts, request.settings.shard_size, request.fingerprint)
        self._samples = SampleMaker(run, request)
        self._judging: Judging[Made, Slot] = Judging(
            limits=limits,
            threads=request.generation.threads,
            key_of=lambda made: made.candidate.slot,
            class_of=lambda made: made.candidate.slot.class_name,
            evidence_of=self._evidence_of,
            sample_of=self._samples.of_candidate,
        )

    def _evidence_of(self, images: Iterable[Made]) -> Evidence:
        return evidence_of(list(images), self.synthesizer)

    def names(self) -> list[ShardName]:
        """Return all shards of the output."""
        n_real = -(-len(self.real_images) // self.request.settings.shard_size)
        synthetic = [ShardName(SYNTHETIC, number) for number in range(self.slots.n_shards)]
        return synthetic + [ShardName(REAL, number) for number in range(n_real)]

    def n_images(self, name: ShardName) -> int:
        """Return how many images a shard is to have."""
        size = self.request.settings.shard_size
        total = len(self.real_images) if name.kind == REAL else sum(self.request.counts.values())
        return min(size, total - name.number * size)

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

    def make(self, shards: Iterable[ShardName], count: Count) -> None:
        """Make shards one after another, each with its marker.

        Args:
            shards: which ones.
            count: is told the numbers of finished images, and of rejected ones by reason, as they come.
        """
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:

            def contents_of(name: ShardName) -> ShardContents:
                return self._real(name, pool, count) if name.kind == REAL else self._synthetic(name, pool, count)

            write_all(self.out, self.request.fingerprint, shards, contents_of)

    def _synthetic(self, name: ShardName, pool: ThreadPoolExecutor, count: Count) -> ShardContents:
        """Fill the shard's slots in rounds: every open slot tries its next candidate."""
        slots = self.slots.of_shard(name.number)
        filler = ShardFiller(self._judging, pool, count)
        open_slots, number = slots, 0
        while open_slots and number < self.request.generation.max_candidates:
            for batch in self._made(open_slots, number, pool):
                filler.add(batch)
            open_slots = [slot for slot in open_slots if slot not in filler.filled]
            number += 1
        count(len(open_slots), {})
        return filler.contents(slots, dict(Counter(slot.class_name for slot in open_slots)))

    def _made(self, slots: list[Slot], number: int, pool: ThreadPoolExecutor) -> Iterator[list[Made]]:
        """Make a candidate of each slot, batch by batch; the next ones are drawn and decoded meanwhile.

        A thread is given a whole batch, because every hop between threads holds up the one that computes.
        """

        def prepared_batch(batch: list[Slot]) -> tuple[list[Candidate], list[np.ndarray]]:
            candidates = [self.stream.draw(slot, number) for slot in batch]
            return candidates, self.synthesizer.load_sources(candidates)

        waiting: deque[Future[tuple[list[Candidate], list[np.ndarray]]]] = deque()
        for batch in slots_by_model(self.run, slots, self.synthesizer.batch):
            waiting.append(pool.submit(prepared_batch, batch))
            if len(waiting) > _THREADS:
                yield self.synthesizer.make(*waiting.popleft().result())
        while waiting:
            yield self.synthesizer.make(*waiting.popleft().result())

    def _real(self, name: ShardName, pool: ThreadPoolExecutor, count: Count) -> ShardContents:
        size = self.request.settings.shard_size
        image_ids = self.real_images[name.number * size : (name.number + 1) * size].tolist()
        samples = []
        for sample in pool.map(self._real_sample, image_ids):
            samples.append(sample)
            count(1, {})
        return ShardContents(samples)

    def _real_sample(self, image_id: int) -> Sample:
        class_name = str(self.run.index.column("class")[image_id])
        # After the synthetic ordinals, so that keys are unique over the whole output.
        position = int(np.searchsorted(self.real_rows[class_name], image_id))
        ordinal = self.request.counts.get(class_name, 0) + position
        return self._samples.of_real(image_id, ordinal, self.synthesizer.load(image_id))
