"""Real images in the view of the synthetic ones that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL

from rebalance.imaging.views import View
from rebalance.index import ImageIndex
from rebalance.measures.features import FeatureExtractor


@dataclass(frozen=True)
class RealImages:
    """Real images in the view of the synthetic ones, see `RealView`.

    Attributes:
        index: the real data set.
        view: how they are seen.
        extractor: the features.
    """

    index: ImageIndex
    view: View
    extractor: FeatureExtractor

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return features (n, D) of images, from the user's cache where they are known."""
        keys = [f"{content} {self.view} {PIL.__version__}" for content in self.index.column("hash")[rows]]
        return self.extractor.extract_cached(keys, (self.pixels(row) for row in rows.tolist()))

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, (size_px, size_px, 3) uint8."""
        return self.view.of_real(self.index.load(row))

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return nothing: what made the synthetic images says nothing of real ones."""
        return {}
