"""Images made of candidates, in batches of one shape."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from rebalance import imaging
from rebalance.generation.candidates import Candidate
from rebalance.generation.loaded_run import LoadedRun, Model
from rebalance.generation.slots import Slot
from rebalance.measures.features import FeatureExtractor
from rebalance.methods.base import Conditions
from rebalance.planning.images import images_of_target
from rebalance.training.loading import reference_labels

T = TypeVar("T")

_SQUARES_BYTES = 128 * 2**20


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


class ReferenceCodes:
    """Codes of the references of all targets, computed in blocks of one batch when one of them is asked for.

    A block is always the same images in the same places, so that a code is the same whoever asks first.
    """

    def __init__(self, run: LoadedRun, block: int, encode: Callable[[Model, list[int]], torch.Tensor]) -> None:
        self._block, self._encode = block, encode
        self._blocks: list[tuple[Model, list[int]]] = []
        self._rows: dict[tuple[str, int], int] = {}
        for target in run.plan.targets:
            model = run.model_of(target.name)
            ids = images_of_target(run.plan, run.index, target.name).references.tolist()
            for first in range(0, len(ids), block):
                block_ids = ids[first : first + block]
                start = len(self._blocks) * block
                self._rows.update(((target.name, image), start + row) for row, image in enumerate(block_ids))
                self._blocks.append((model, block_ids))
        self._computed: set[int] = set()
        self._table = torch.empty(0)

    @torch.inference_mode()
    def of(self, candidates: Sequence[Candidate]) -> torch.Tensor:
        """Return the mean codes (n, d) of the references of n candidates, which have equally many."""
        rows = [[self._rows[c.slot.class_name, image] for image in c.references] for c in candidates]
        for number in sorted({row // self._block for of_one in rows for row in of_one} - self._computed):
            self._compute(number)
        return self._table[torch.tensor(rows, device=self._table.device).T].mean(0)

    def _compute(self, number: int) -> None:
        codes = self._encode(*self._blocks[number])
        if not self._computed:
            self._table = codes.new_empty(len(self._blocks) * self._block, codes.shape[1])
        first = number * self._block
        self._table[first : first + self._block] = codes
        self._computed.add(number)


class Synthesizer:
    """Makes the images of candidates in batches of one shape; codes of references are computed once."""

    def __init__(self, run: LoadedRun, device: torch.device, extractor: FeatureExtractor | None = None) -> None:
        self.run, self.device, self.extractor = run, device, extractor
        self.batch = run.recipe.generation.batch
        self._reference_codes = ReferenceCodes(run, self.batch, self._encoded)
        data = run.recipe.data
        most = _SQUARES_BYTES // (data.size_px**2 * data.channels)
        self._squares = functools.lru_cache(most)(lambda image_id: run.index.square(image_id, data))

    def load(self, image_id: int) -> np.ndarray:
        """Return an image as the model's square, (H, W, C) uint8, not to be written to: the latest are kept."""
        return self._squares(image_id)

    def load_sources(self, candidates: Sequence[Candidate]) -> list[np.ndarray]:
        """Return the source images of candidates, (H, W, C) uint8 each; none for a method that takes none."""
        return [self.load(candidate.source) for candidate in candidates if candidate.source is not None]

    def _padded(self, pixels: Iterable[np.ndarray]) -> torch.Tensor:
        """Stack images and repeat the last up to the batch's shape, because results depend on the shape."""
        images = list(pixels)
        stacked = np.stack([*images, *[images[-1]] * (self.batch - len(images))])
        return imaging.to_float(torch.from_numpy(stacked)).to(self.device)

    def _encoded(self, model: Model, image_ids: list[int]) -> torch.Tensor:
        """Return the codes (batch, d) of at most a batch of references, the last one's repeated."""
        padded = image_ids + [image_ids[-1]] * (self.batch - len(image_ids))
        labels = torch.tensor(reference_labels(padded, model.modalities, self.run.modalities), device=self.device)
        references = self._padded([self.run.index.square(image_id, self.run.recipe.data) for image_id in image_ids])
        return model.method.codes(Conditions(labels, references=references))

    def _codes(self, model: Model, candidates: Sequence[Candidate]) -> torch.Tensor:
        """Return the codes (batch, d) of at most a batch of candidates, the last one's repeated."""
        padded = [*candidates, *[candidates[-1]] * (self.batch - len(candidates))]
        if model.method.inputs.references:
            return self._reference_codes.of(padded)
        labels = torch.tensor([candidate.label for candidate in padded], device=self.device)
        drawn = [candidate.latent for candidate in padded if candidate.latent is not None]
        latents = torch.from_numpy(np.stack(drawn)).to(self.device) if drawn else None
        return model.method.codes(Conditions(labels, latents=latents))

    @torch.inference_mode()
    def make(self, candidates: Sequence[Candidate], sources: Sequence[np.ndarray]) -> list[Made]:
        """Make at most a batch of images, all of targets of one model; with an extractor, also their features.

        Args:
            candidates: the candidates.
            sources: what `load_sources` returned of them.
        """
        model = self.run.model_of(candidates[0].slot.class_name)
        codes = self._codes(model, candidates)
        pixels = imaging.to_pixels(model.method.make(self._padded(sources) if sources else None, codes))
        if self.extractor is None:
            return [Made(c, p, -1.0) for c, p in zip(candidates, pixels, strict=False)]
        confidences = self._confidences(model, [c.slot.class_name for c in candidates], pixels)
        features = self.extractor.extract(pixels)
        rows = zip(candidates, pixels, confidences, features, strict=False)
        return [Made(*row) for row in rows]

    def has_head_for(self, target: str) -> bool:
        """Return whether the target's model can give the probability of that class."""
        model = self.run.model_of(target)
        return model.method.has_class_head and bool(model.labels[target])

    @torch.inference_mode()
    def confidences_of(self, targets: Sequence[str], pixels: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the probability (n,) of each target that its model can tell, by the models' class heads.

        Args:
            targets: the targets.
            pixels: any images (H, W, C) uint8, one after another; no more than a batch of them is held.
        """
        with_head = list(filter(self.has_head_for, targets))
        of_models = [(model, [t for t in with_head if self.run.model_of(t) is model]) for model in self.run.models]
        confidences: dict[str, list[float]] = {target: [] for target in with_head}
        remaining = iter(pixels)
        while with_head and (batch := list(itertools.islice(remaining, self.batch))):
            for model, own in of_models:
                if own:
                    probabilities = self._class_probabilities(model, batch)[: len(batch)]
                    for target in own:
                        confidences[target] += [_confidence(row, model.labels[target]) for row in probabilities]
        return {target: np.array(of_target) for target, of_target in confidences.items()}

    def _confidences(self, model: Model, names: Sequence[str], pixels: np.ndarray) -> list[float]:
        """Return the probability of its class of each image of a full batch (B, H, W, C), of the first ones named."""
        if not model.method.has_class_head:
            return [-1.0] * len(names)
        rows = zip(names, self._class_probabilities(model, pixels), strict=False)
        return [_confidence(row, model.labels[name]) if model.labels[name] else -1.0 for name, row in rows]

    def _class_probabilities(self, model: Model, pixels: Iterable[np.ndarray]) -> torch.Tensor:
        """Return the class head's probabilities (batch, translator classes) of at most a batch of images."""
        return model.method.class_logits(self._padded(pixels)).float().softmax(1).cpu()


def _confidence(probabilities: torch.Tensor, labels: Sequence[int]) -> float:
    """Return the probability of a class: the sum of those of its translator classes."""
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
