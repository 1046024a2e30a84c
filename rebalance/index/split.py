"""A val split held out of train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from rebalance.index.image_index import ImageIndex


def carve_validation(index: ImageIndex, fraction: float, seed: int, *, part: int = 0, least: int = 0) -> ImageIndex:
    """Move a seeded, stratified share of train to a new val split; a no-op where a val split exists.

    A class keeps at least one image in train. An image whose exact copy is also in train is never carved, so the new
    split does not leak.

    Args:
        index: the index.
        fraction: share of each class's train images, rounded down.
        seed: seed of the choice.
        part: which share: part k is the k-th after another in one order, round and round.
        least: images of each class at least, where two times as many are left in train.
    """
    split = index.column("split").copy()
    if fraction == 0 or (split == "val").any():
        return index
    train, n_copies = index.usable & (split == "train"), index.n_copies()
    for label, class_name in enumerate(index.classes):
        rows = np.flatnonzero(train & (index.column("class") == class_name))
        n_val = max(int(len(rows) * fraction), least if len(rows) >= 3 * least else 0)
        n_val = max(min(n_val, len(rows) - 1), 0)
        eligible = rows[n_copies[rows] == 1]
        order = np.random.default_rng((seed, label)).permutation(len(eligible))
        positions = np.arange(part * n_val, part * n_val + min(n_val, len(order)))
        split[eligible[order.take(positions, mode="wrap")]] = "val"
    position = index.table.schema.get_field_index("split")
    return replace(index, table=index.table.set_column(position, "split", pa.array(split.astype(str))))
