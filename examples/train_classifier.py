"""Train a small classifier on a real image folder and on synthetic shards, mixed in one DataLoader.

    python examples/train_classifier.py demo/data demo/shards

It prints the recall of every class on the test split with and without the shards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import rebalance


def transform(size_px: int) -> v2.Compose:
    """Bring real and synthetic images to the same shape, so that neither can be told by its size."""
    return v2.Compose(
        [v2.Grayscale(), v2.Resize((size_px, size_px)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )


def synthetic_images(shards: Path, size_px: int) -> Dataset:
    """Read the shards once into memory."""
    images, labels = zip(*rebalance.load_shards(shards, transform(size_px)), strict=True)
    return TensorDataset(torch.stack(images), torch.tensor(labels))


def network(size_px: int, n_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * (size_px // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, n_classes),
    )  # fmt: skip


def train(dataset: Dataset, size_px: int, n_classes: int, steps: int, seed: int) -> nn.Module:
    """Train for a fixed number of steps, whatever the size of the data set."""
    torch.manual_seed(seed)
    model = network(size_px, n_classes)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    step = 0
    while step < steps:
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    return model.eval()


@torch.inference_mode()
def recalls(model: nn.Module, dataset: Dataset, n_classes: int) -> torch.Tensor:
    """Return the recall of every class, (n_classes,)."""
    right, total = torch.zeros(n_classes), torch.zeros(n_classes)
    for images, labels in DataLoader(dataset, batch_size=256):
        hit = (model(images).argmax(1) == labels).float()
        right.index_add_(0, labels, hit)
        total.index_add_(0, labels, torch.ones_like(hit))
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="image folder with train and test")
    parser.add_argument("shards", type=Path, help="shards made from it")
    parser.add_argument("--size-px", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    real, test = (
        # Labels as tensors, like the shards', because a batch may mix both.
        ImageFolder(str(arguments.data / split), transform(arguments.size_px), target_transform=torch.tensor)
        for split in ("train", "test")
    )
    synthetic = synthetic_images(arguments.shards, arguments.size_px)
    arms = {"real": real, "real + synthetic": ConcatDataset([real, synthetic])}
    print("class             " + " ".join(f"{name:>6}" for name in real.classes) + "    mean")
    for name, dataset in arms.items():
        model = train(dataset, arguments.size_px, len(real.classes), arguments.steps, arguments.seed)
        recall = recalls(model, test, len(real.classes))
        print(f"{name:17} " + " ".join(f"{value:6.2f}" for value in recall) + f"  {recall.mean():6.3f}")


if __name__ == "__main__":
    main()
