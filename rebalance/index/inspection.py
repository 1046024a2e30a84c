"""Summary of a data set: counts, sizes, bad files, copies across splits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rebalance.index.image_index import SPLITS, ImageIndex


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Leak:
    """One image that occurs, byte for byte, in several splits."""

    paths: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Counts, sizes and faults of a data set.

    Attributes:
        counts: usable images by split, then by class in label order; splits without any image are left out.
        imbalance: largest over smallest class of train; None when a class is empty.
        width_px: smallest, median and largest width of usable images; zeros when there is none.
        height_px: the same of the height.
        bad: unusable files, in path order.
        leaks: exact copies across splits, which make scores on those splits too good.
        n_duplicates: usable images that are exact copies of an earlier one of the same split.
    """

    counts: dict[str, dict[str, int]]
    imbalance: float | None
    width_px: tuple[int, int, int]
    height_px: tuple[int, int, int]
    bad: tuple[BadFile, ...]
    leaks: tuple[Leak, ...]
    n_duplicates: int

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain values."""
        return asdict(self)


def inspect_index(index: ImageIndex) -> Inspection:
    """Summarise an index."""
    usable = index.usable
    counts = {split: index.counts(split) for split in SPLITS if (usable & (index.column("split") == split)).any()}
    train: list[int] = list(counts.get("train", {}).values())
    bad = tuple(BadFile(index.name(row), index.column("reason")[row]) for row in np.flatnonzero(~usable).tolist())
    leaks, n_duplicates = _copies(index)
    return Inspection(
        counts=counts,
        imbalance=max(train) / least if (least := min(train, default=0)) else None,
        width_px=_spread(index.column("width")[usable]),
        height_px=_spread(index.column("height")[usable]),
        bad=bad,
        leaks=leaks,
        n_duplicates=n_duplicates,
    )


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    if not len(values):
        return (0, 0, 0)
    return (int(values.min()), int(np.median(values)), int(values.max()))


def _copies(index: ImageIndex) -> tuple[tuple[Leak, ...], int]:
    copied = index.usable & (index.n_copies() > 1)
    rows = np.flatnonzero(copied)
    hashes = index.table.column("hash").filter(pa.array(copied)).to_numpy(zero_copy_only=False).astype(str)
    splits = index.column("split")[rows].astype(str)
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(np.unique(hashes[order], return_inverse=True)[1])) + 1)
    leaks, n_duplicates = [], 0
    for group in groups:
        if len(group) > 1:
            names = tuple(sorted(set(splits[group].tolist())))
            n_duplicates += len(group) - len(names)
            if len(names) > 1:
                leaks.append(Leak(tuple(index.name(rows[member]) for member in group), names))
    return tuple(leaks), n_duplicates
