"""Random over-sampling."""

from __future__ import annotations

import numpy as np

from rebalance.trials.remedies.base import Remedy, even_mass


class Oversampling(Remedy):
    """Every class is drawn equally often, so images of small classes are repeated."""

    name = "oversampling"
    usual = (False, True)

    def class_mass(self, counts: np.ndarray) -> np.ndarray:
        """Return the same (classes,) for every class that has images."""
        return even_mass(counts)
