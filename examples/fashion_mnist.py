"""Write Fashion-MNIST as a long-tailed image folder with train, val and test.

    python examples/fashion_mnist.py fashion
    rebalance inspect fashion

The images come from Debian's package `dataset-fashion-mnist` (`apt-get install dataset-fashion-mnist`) or, with
`--download`, from torchvision.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
LONG_TAIL = (4000, 2000, 1000, 750, 500, 350, 200, 100, 60, 40)
N_VAL = 100


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes."""
    with gzip.open(path) as file:
        data = file.read()
    n_dimensions = data[3]
    shape = np.frombuffer(data, ">u4", n_dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def load(split: str, download: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 28, 28) uint8 and labels (n,) of "train" or "test"."""
    if download is not None:
        from torchvision.datasets import FashionMNIST

        data = FashionMNIST(str(download), train=split == "train", download=True)
        return data.data.numpy(), data.targets.numpy()
    prefix = "train" if split == "train" else "t10k"
    images = DEBIAN_FOLDER / f"{prefix}-images-idx3-ubyte.gz"
    if not images.is_file():
        raise SystemExit(f"{images} is missing: apt-get install dataset-fashion-mnist, or use --download FOLDER")
    return read_idx(images), read_idx(DEBIAN_FOLDER / f"{prefix}-labels-idx1-ubyte.gz")


def write(folder: Path, images: np.ndarray, rows: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.fromarray(images[row]).save(folder / f"{row:05d}.png")


def write_long_tail(out: Path, counts: Sequence[int], n_val: int, seed: int, download: Path | None) -> None:
    """Write `counts` train images of classes 0 to 9, `n_val` val images of each, and all test images."""
    images, labels = load("train", download)
    rng = np.random.default_rng(seed)
    for label, count in enumerate(counts):
        rows = rng.permutation(np.flatnonzero(labels == label))
        write(out / "train" / str(label), images, rows[:count])
        write(out / "val" / str(label), images, rows[len(rows) - n_val :])
    images, labels = load("test", download)
    for label in range(10):
        write(out / "test" / str(label), images, np.flatnonzero(labels == label))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--counts", default=",".join(map(str, LONG_TAIL)), help="train images of classes 0 to 9")
    parser.add_argument("--val", type=int, default=N_VAL, help="val images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="let torchvision download to FOLDER")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.counts.split(",")]
    if len(counts) != 10:
        parser.error(f"--counts: got {len(counts)} numbers, allowed: 10")
    write_long_tail(arguments.out, counts, arguments.val, arguments.seed, arguments.download)
    print(f"{sum(counts)} train, {10 * arguments.val} val and 10000 test images in {arguments.out}")


if __name__ == "__main__":
    main()
