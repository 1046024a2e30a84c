"""The imbalanced data sets that benchmarks run on, each with all its real images beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from rebalance.cli import demo

sys.path.append(str(Path(__file__).parent.parent))  # the examples are no package

from examples import fashion_mnist


@dataclass(frozen=True)
class DataSet:
    """An imbalanced data set.

    Attributes:
        write: writes it as an image folder with train and test, the same files each time.
        everything: returns all real images that are not in test, (n, H, W) uint8, and their labels (n,).
        targets: train images of its poorest classes.
    """

    write: Callable[[Path], None]
    everything: Callable[[], tuple[np.ndarray, np.ndarray]]
    targets: Mapping[str, int]

    def prepared(self, folder: Path) -> Path:
        """Return the image folder, written if it is not there yet."""
        done = folder / ".written"
        if not done.is_file():
            self.write(folder)
            done.touch()
        return folder


def _fashion(counts: tuple[int, ...]) -> DataSet:
    poorest = sorted(range(10), key=counts.__getitem__)[:4]
    return DataSet(
        write=lambda folder: fashion_mnist.write_long_tail(folder, counts, fashion_mnist.N_VAL, 0, None),
        everything=lambda: fashion_mnist.load("train", None),
        targets={str(label): counts[label] for label in sorted(poorest)},
    )


def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    digits, rows = load_digits(), np.concatenate(list(demo.split_digits()[0].values()))
    return (digits.images[rows] * 255 / 16).round().astype(np.uint8), digits.target[rows]


DATA_SETS = {
    "fashion": _fashion(fashion_mnist.LONG_TAIL),
    "fashion-reversed": _fashion(fashion_mnist.LONG_TAIL[::-1]),
    "digits": DataSet(demo.write_digits, _all_digits, demo.POOR),
}
