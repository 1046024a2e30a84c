"""Features of the real train images of a class and their near copies, and the search of the most similar one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from rebalance.filtering.space import float64_product

# Groups whose nearest row is compared in all dimensions: of eight candidates, one is nearly always the nearest of all.
_GROUPS = 8
# Components of the first search; with more, the search costs more than it finds.
_COARSE = 24
# Rows that the components are fitted to, at most: the eigenvalues of as many take a fraction of a second.
_MOST_FITTED = 512
# Images that are searched at once, so that their rows stay in the processor's cache.
_ROWS = 32
# Rows that are converted to float32 at once, so that memory holds no second copy of all.
_CONVERTED = 8192


@dataclass(frozen=True)
class TrainFeatures:
    """Normalised features of train images and their near copies, and a few components in which to look there first.

    The cosines of an image to all of them would cost as much as making it where there are a thousand train images. So
    the nearest in each of a few groups is looked up in components, and the exact cosine taken of those alone.

    Attributes:
        rows: (n, D) float16 of length 1 but for rounding: train images, then their copies, kind by kind.
        axes: (D, r) float32, orthonormal: principal components of the rows, not centred.
    """

    rows: np.ndarray
    axes: np.ndarray

    @cached_property
    def _places(self) -> np.ndarray:
        """The rows of each group, as (groups, m); the last row stands in where they do not come out even."""
        groups = min(_GROUPS, len(self.rows))
        m = -(-len(self.rows) // groups)
        return np.minimum(np.arange(groups * m), len(self.rows) - 1).reshape(groups, m)

    def rows_at(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (m, D) float32 of length 1."""
        return unit(_wide(self.rows[rows]))

    @cached_property
    def _lengths(self) -> np.ndarray:
        """(n,) float32: float16 leaves them a little off 1, and a copy's cosine is held against 1."""
        blocks = range(0, len(self.rows), _CONVERTED)
        lengths = [np.linalg.norm(self.rows[b : b + _CONVERTED].astype(np.float32), axis=1) for b in blocks]
        return np.concatenate(lengths).clip(min=1e-12)

    @cached_property
    def _coarse(self) -> np.ndarray:
        """(r, groups * m) float64, the rows in components, of length 1 there."""
        blocks = range(0, len(self.rows), _CONVERTED)
        small = np.concatenate([_wide(self.rows[b : b + _CONVERTED]) @ self.axes for b in blocks])
        return np.ascontiguousarray(unit(small)[self._places.ravel()].T, np.float64)

    def similarity(self, centred: np.ndarray, small: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Return the cosine (n,) float32 of images to the most similar row.

        Args:
            centred: (n, D) float32 features from the pooled mean.
            small: (n, r) float64, the same in the components.
            own: (n, k) the rows of an image that are not to count; None: all do.
        """
        nearest_cosine = np.empty(len(centred), np.float32)
        for first in range(0, len(centred), _ROWS):
            part = slice(first, first + _ROWS)
            coarse = float64_product(small[part], self._coarse)
            if own is not None:
                for row, mine in zip(coarse, own[part], strict=True):
                    row[mine] = -np.inf
                    row[len(self.rows) :] = row[len(self.rows) - 1]
            nearest = coarse.reshape(len(coarse), *self._places.shape).argmax(2)
            rows = self._places[np.arange(len(self._places)), nearest]
            cosines = np.matmul(_wide(self.rows[rows]), unit(centred[part])[:, :, None])[:, :, 0]
            cosines /= self._lengths[rows]
            if own is not None:
                cosines[(rows[:, :, None] == own[part][:, None, :]).any(2)] = -1.0
            nearest_cosine[part] = cosines.max(1)
        return nearest_cosine


def fit_train_features(centred: np.ndarray, copies: np.ndarray | None, centre: np.ndarray, seed: int) -> TrainFeatures:
    """Build the rows and components of a class.

    Args:
        centred: (n, D) float32 features of train images, from the pooled mean.
        copies: (c, n, D) features of their near copies; None: there are none.
        centre: (D,) float32, the pooled mean.
        seed: seed of the rows that the components are fitted to, where there are many.
    """
    kinds = [unit(centred).astype(np.float16)]
    kinds += [unit(kind.astype(np.float32) - centre).astype(np.float16) for kind in (() if copies is None else copies)]
    rows = np.concatenate(kinds)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:_MOST_FITTED]
    fitted = rows[np.sort(drawn)].astype(np.float64)
    values, vectors = np.linalg.eigh(fitted @ fitted.T)
    used = values > max(values[-1], 1e-12) * 1e-6
    used[:-_COARSE] = False
    axes = fitted.T @ (vectors[:, used] / np.sqrt(values[used]))
    return TrainFeatures(rows, np.ascontiguousarray(axes[:, ::-1], np.float32))


def _wide(rows: np.ndarray) -> np.ndarray:
    """Return float16 as float32; NumPy takes ten times as long for it."""
    return np.asarray(torch.from_numpy(rows).float().numpy())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, d) with length 1, in their own precision; those of no length stay as they are."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return np.asarray(vectors / lengths[:, None].clip(min=1e-12))
