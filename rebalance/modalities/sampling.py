"""Batches that the modality encoder trains on."""

from __future__ import annotations

from dataclasses import dataclass

from rebalance.learning.batches import ImageBatch
from rebalance.learning.image_store import ImageStore, step_rng

_ENCODER_STREAM = 1


@dataclass(frozen=True)
class EncoderBatches:
    """Batches of distinct images, drawn uniformly over all."""

    store: ImageStore
    batch: int
    seed: int

    def __call__(self, step: int) -> ImageBatch:
        """Return the batch of a step."""
        n = len(self.store.image_ids)
        rows = step_rng(self.seed, _ENCODER_STREAM, step).choice(n, min(self.batch, n), replace=False)
        return ImageBatch(self.store.tensor(rows))
