"""Class weights in the loss."""

from __future__ import annotations

import numpy as np

from rebalance.config import DownstreamOptions
from rebalance.trials.remedies.base import Remedy, balancing_weights


class Weighted(Remedy):
    """A class's loss is weighted by one over its frequency, in every step."""

    name = "weighted"

    def class_weights(self, probabilities: np.ndarray, progress: float, options: DownstreamOptions) -> np.ndarray:
        """Return weights (classes,) float32 that make every class count the same."""
        return balancing_weights(probabilities)
