"""Mixup with deferred re-weighting."""

from __future__ import annotations

import numpy as np

from rebalance.config import DownstreamOptions
from rebalance.trials.remedies.base import Mix, Remedy, balancing_weights


class Mixup(Remedy):
    """Images and labels are mixed in pairs (Zhang et al., 2018); class weights come in the last steps.

    The weights come late, after Cao et al. (2019): the features are learned on the natural frequencies first.
    """

    name = "mixup"

    def class_weights(self, probabilities: np.ndarray, progress: float, options: DownstreamOptions) -> np.ndarray:
        """Return equal weights (classes,) float32, and balancing ones in the last `deferred` share of the steps."""
        if progress >= 1 - options.deferred:
            return balancing_weights(probabilities)
        return super().class_weights(probabilities, progress, options)

    def mix(self, labels: np.ndarray, rng: np.random.Generator, options: DownstreamOptions) -> Mix:
        """Return weights drawn from Beta(alpha, alpha), the same for pixels and labels."""
        weights = rng.beta(options.mixup_alpha, options.mixup_alpha, len(labels)).astype(np.float32)
        return Mix(weights, weights)
