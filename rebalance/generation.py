"""Station 6, generation: slots, the candidates each of them draws, and the images made of them."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from rebalance import images
from rebalance.config import Recipe
from rebalance.errors import InputError
from rebalance.features import FeatureExtractor
from rebalance.index import ImageIndex
from rebalance.methods import Method
from rebalance.modalities import Modalities
from rebalance.planning import Plan
from rebalance.training import RunDirectory, Unit, load_method, reference_labels, units_of

T = TypeVar("T")

_SQUARES_BYTES = 128 * 2**20


def keyed_rng(*key: object) -> np.random.Generator:
    """Return a counter-based generator (Philox) keyed by the hash of `key`'s texts."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


@dataclass(frozen=True)
class Slot:
    """One wanted image.

    Attributes:
        class_name: its class.
        ordinal: its number within that class, over the whole output.
    """

    class_name: str
    ordinal: int


@dataclass(frozen=True)
class Candidate:
    """One try at a slot.

    Attributes:
        slot: what it is for.
        number: 0 for the first try.
        source: id of the source image.
        references: ids of the reference images, whose style codes are averaged.
    """

    slot: Slot
    number: int
    source: int
    references: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A candidate's image.

    Attributes:
        candidate: the candidate.
        pixels: (H, W, C) uint8.
        confidence: probability of its class by the method's class head, -1 where that is not asked or cannot tell.
        features: (d,) float32; None without an extractor.
    """

    candidate: Candidate
    pixels: np.ndarray
    confidence: float
    features: np.ndarray | None = None


@dataclass(frozen=True)
class Slots:
    """All slots of an output: classes interleaved in the wanted proportion and cut into shards.

    Attributes:
        counts: images of each class.
        shard_size: images of a shard; the last may have fewer.
        key: key of the permutation.
    """

    counts: Mapping[str, int]
    shard_size: int
    key: str

    @cached_property
    def _order(self) -> np.ndarray:
        numbers = np.arange(len(self.counts), dtype=np.uint16)
        order = np.repeat(numbers, list(self.counts.values()))
        keyed_rng(self.key, "order").shuffle(order)
        return order

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-sum(self.counts.values()) // self.shard_size)

    def of_shard(self, number: int) -> list[Slot]:
        """Return the slots of a shard."""
        first = number * self.shard_size
        seen = np.bincount(self._order[:first], minlength=len(self.counts)).tolist()
        names, slots = list(self.counts), []
        for class_number in self._order[first : first + self.shard_size].tolist():
            slots.append(Slot(names[class_number], seen[class_number]))
            seen[class_number] += 1
        return slots


@dataclass(frozen=True)
class CandidateStream:
    """Draws candidates: a pure function of the key, the slot and the candidate's number.

    Attributes:
        key: the generation fingerprint, or the calibration's.
        sources: image ids of each of a target's source classes, by target.
        references: image ids of each target.
        n_references: references of a candidate.
    """

    key: str
    sources: Mapping[str, tuple[np.ndarray, ...]]
    references: Mapping[str, np.ndarray]
    n_references: int

    def draw(self, slot: Slot, number: int) -> Candidate:
        """Draw a source class uniformly, then its image, then distinct references where there are enough."""
        rng = keyed_rng(self.key, slot.class_name, slot.ordinal, number)
        classes, references = self.sources[slot.class_name], self.references[slot.class_name]
        sources = classes[rng.integers(len(classes))]
        source = sources[rng.integers(len(sources))]
        chosen = rng.choice(references, self.n_references, replace=len(references) < self.n_references)
        return Candidate(slot, number, int(source), tuple(chosen.tolist()))


def candidate_stream(key: str, index: ImageIndex, plan: Plan, recipe: Recipe) -> CandidateStream:
    """Build the stream of a run's targets."""
    return CandidateStream(
        key,
        {t.name: tuple(index.rows("train", source.name) for source in t.sources) for t in plan.targets},
        {t.name: index.rows("train", t.name) for t in plan.targets},
        recipe.generation.n_references,
    )


@dataclass(frozen=True)
class Model:
    """A trained model with what generation needs beside it.

    Attributes:
        unit: which targets it makes.
        method: the method with generating weights.
        weights_sha256: hash of the weights' file.
        labels: translator classes of each of its targets; empty for a target left out of training.
    """

    unit: Unit
    method: Method
    weights_sha256: str
    labels: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to generate."""

    directory: RunDirectory
    recipe: Recipe
    plan: Plan
    index: ImageIndex
    modalities: Modalities
    models: tuple[Model, ...]

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What identifies the run: its data, its modalities' weights and its recipe, not where it lies."""
        weights = "/".join(model.weights_sha256 for model in self.models)
        recipe = hashlib.sha256(repr(self.recipe).encode()).hexdigest()
        return {
            "data": self.index.fingerprint,
            "weights": hashlib.sha256(weights.encode()).hexdigest(),
            "recipe": recipe,
        }

    def model_of(self, target: str) -> Model:
        """Return the model that makes a target."""
        return next(model for model in self.models if target in model.unit.targets)


def load_run(run: RunDirectory, data: str | None, device: torch.device) -> LoadedRun:
    """Load a finished run.

    Args:
        run: the run directory.
        data: where the data set is now; None: where it was when the run was fitted.
        device: where to generate.

    Raises:
        InputError: not a run, or not finished.
        DamagedError: a file of the run is damaged.
    """
    recipe, plan, index = run.recipe(), run.plan(), run.index()
    if data is not None:
        index = index.moved_to(Path(data))
    if not index.root.is_dir():
        raise InputError(f"the data set of this run is not at {index.root}", remedy="Name where it is now with --data")
    if not run.has_modalities():
        raise InputError(f"the run {run.path} is not finished", remedy="Run the same `rebalance fit` command again")
    modalities, models = run.modalities(), []
    for unit in units_of(plan, index, recipe):
        method, digest = load_method(run, unit, modalities, recipe, device)
        known = unit.labels(modalities)
        labels = {t: tuple(known.index(m) for m in modalities.of_class(t) if m in known) for t in unit.targets}
        models.append(Model(unit, method, digest, labels))
    return LoadedRun(run, recipe, plan, index, modalities, tuple(models))


class StyleCodes:
    """Style codes of the references of all targets, computed in blocks of one batch when one of them is asked for.

    A block is always the same images in the same places, so that a code is the same whoever asks first.
    """

    def __init__(self, run: LoadedRun, block: int, encode: Callable[[Model, list[int]], torch.Tensor]) -> None:
        self._block, self._encode = block, encode
        self._blocks: list[tuple[Model, list[int]]] = []
        self._rows: dict[int, int] = {}  # an image is of one class, so its id tells the target
        for target in run.plan.targets:
            ids, model = run.index.rows("train", target.name).tolist(), run.model_of(target.name)
            for first in range(0, len(ids), block):
                chosen = ids[first : first + block]
                self._rows.update((image_id, len(self._blocks) * block + row) for row, image_id in enumerate(chosen))
                self._blocks.append((model, chosen))
        self._known: set[int] = set()
        self._table = torch.empty(0)

    @torch.inference_mode()
    def of(self, references: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the mean codes (n, d) of n tuples of as many reference ids."""
        rows = [[self._rows[image_id] for image_id in of_one] for of_one in references]
        for number in sorted({row // self._block for of_one in rows for row in of_one} - self._known):
            self._compute(number)
        return self._table[torch.tensor(rows, device=self._table.device).T].mean(0)

    def _compute(self, number: int) -> None:
        codes = self._encode(*self._blocks[number])
        if not self._known:
            self._table = codes.new_empty(len(self._blocks) * self._block, codes.shape[1])
        first = number * self._block
        self._table[first : first + self._block] = codes
        self._known.add(number)


class Synthesizer:
    """Makes the images of candidates in batches of one shape; style codes of references are computed once."""

    def __init__(self, run: LoadedRun, device: torch.device, extractor: FeatureExtractor | None = None) -> None:
        self.run, self.device, self.extractor = run, device, extractor
        self.batch = run.recipe.generation.batch
        self._codes = StyleCodes(run, self.batch, self._encoded)
        data = run.recipe.data
        most = _SQUARES_BYTES // (data.size_px**2 * data.channels)
        self._squares = functools.lru_cache(most)(lambda image_id: run.index.square(image_id, data))

    def load(self, image_id: int) -> np.ndarray:
        """Return an image as the model's square, (H, W, C) uint8, not to be written to: the latest are kept."""
        return self._squares(image_id)

    def _padded(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Stack images and repeat the last up to the batch's shape, because results depend on the shape."""
        stacked = np.stack([*pixels, *[pixels[-1]] * (self.batch - len(pixels))])
        return images.to_float(torch.from_numpy(stacked)).to(self.device)

    def _encoded(self, model: Model, image_ids: list[int]) -> torch.Tensor:
        """Return the style codes (batch, d) of at most a batch of references, the last one's repeated."""
        known = model.unit.labels(self.run.modalities)
        padded = image_ids + [image_ids[-1]] * (self.batch - len(image_ids))
        labels = reference_labels(padded, known, self.run.modalities)
        references = self._padded([self.run.index.square(image_id, self.run.recipe.data) for image_id in image_ids])
        return model.method.reference_codes(references, torch.tensor(labels, device=self.device))

    @torch.inference_mode()
    def make(self, candidates: Sequence[Candidate], sources: Sequence[np.ndarray]) -> list[Made]:
        """Make at most a batch of images, all of targets of one model; with an extractor, also their features.

        Args:
            candidates: the candidates.
            sources: their source images, (H, W, C) uint8.
        """
        model = self.run.model_of(candidates[0].slot.class_name)
        references = [candidate.references for candidate in candidates]
        codes = self._codes.of(references + [references[-1]] * (self.batch - len(references)))
        pixels = images.to_pixels(model.method.synthesize(self._padded(sources), codes))
        if self.extractor is None:
            return [Made(c, p, -1.0) for c, p in zip(candidates, pixels, strict=False)]
        confidences = self._confidences(model, [c.slot.class_name for c in candidates], pixels)
        features = self.extractor.extract(pixels)
        rows = zip(candidates, pixels, confidences, features, strict=False)
        return [Made(*row) for row in rows]

    def knows(self, target: str) -> bool:
        """Whether the target's model can say how sure it is of that class."""
        model = self.run.model_of(target)
        return model.method.has_class_head and bool(model.labels[target])

    @torch.inference_mode()
    def confidences_of(self, targets: Sequence[str], pixels: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the probability (n,) of each target that its model can tell, by the models' class heads.

        Args:
            targets: the targets.
            pixels: any images (H, W, C) uint8, one after another; no more than a batch of them is held.
        """
        known = list(filter(self.knows, targets))
        of_models = [(model, [t for t in known if self.run.model_of(t) is model]) for model in self.run.models]
        found: dict[str, list[float]] = {target: [] for target in known}
        remaining = iter(pixels)
        while known and (chosen := list(itertools.islice(remaining, self.batch))):
            for model, own in of_models:
                if own:
                    probabilities = self._class_probabilities(model, chosen)[: len(chosen)]
                    for target in own:
                        found[target] += [_confidence(row, model.labels[target]) for row in probabilities]
        return {target: np.array(of_target) for target, of_target in found.items()}

    def _confidences(self, model: Model, names: Sequence[str], pixels: np.ndarray) -> list[float]:
        """Return the probability of its class of each image of a full batch (B, H, W, C), of the first ones named."""
        if not model.method.has_class_head:
            return [-1.0] * len(names)
        rows = zip(names, self._class_probabilities(model, pixels), strict=False)
        return [_confidence(row, model.labels[name]) if model.labels[name] else -1.0 for name, row in rows]

    def _class_probabilities(self, model: Model, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the class head's probabilities (batch, translator classes) of at most a batch of images."""
        return model.method.class_logits(self._padded(pixels)).float().softmax(1).cpu()


def _confidence(probabilities: torch.Tensor, labels: Sequence[int]) -> float:
    """The probability of a class by those of its translator classes."""
    return round(float(probabilities[list(labels)].sum()), 6)


def batches_by_model(run: LoadedRun, candidates: Sequence[Candidate], size: int) -> list[list[Candidate]]:
    """Cut candidates into batches of one model each, keeping their order."""
    return _by_model(run, candidates, size, lambda candidate: candidate.slot.class_name)


def slots_by_model(run: LoadedRun, slots: Sequence[Slot], size: int) -> list[list[Slot]]:
    """Cut slots into batches of one model each, keeping their order."""
    return _by_model(run, slots, size, lambda slot: slot.class_name)


def _by_model(run: LoadedRun, items: Sequence[T], size: int, class_of: Callable[[T], str]) -> list[list[T]]:
    batches = []
    for model in run.models:
        own = [item for item in items if class_of(item) in model.unit.targets]
        batches += [own[first : first + size] for first in range(0, len(own), size)]
    return batches
