"""A classifier trained on all real images, which judges whether synthetic ones look like their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn
from tqdm import tqdm

from rebalance import imaging

_BATCH = 128


def network(size_px: int, n_classes: int) -> nn.Module:
    """Return a small convolutional network with batch normalisation for gray images."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2),
        *block(64, 128), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, n_classes),
    )  # fmt: skip


def train(pixels: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> nn.Module:
    """Train for some steps of 128 images on pixels (n, H, W, 1) uint8 and labels (n,), shifted by up to 2 px."""
    torch.manual_seed(seed)
    model = network(pixels.shape[1], int(labels.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="classifier", unit="step"):
        rows = rng.integers(len(labels), size=_BATCH)
        shifted = np.roll(pixels[rows], rng.integers(-2, 3, size=2), axis=(1, 2))
        loss = F.cross_entropy(
            model(imaging.to_float(torch.from_numpy(shifted))), torch.from_numpy(labels[rows]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def train_or_load(path: Path, pixels: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> nn.Module:
    """Return the classifier whose weights lie at `path`, trained first if they do not."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(train(pixels, labels, steps, seed), str(path))
    model = network(pixels.shape[1], int(labels.max()) + 1).to(memory_format=torch.channels_last)
    load_model(model, str(path))
    return model.eval()


@torch.inference_mode()
def predict(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Return the labels (n,) that the classifier gives pixels (n, H, W, 1) uint8."""
    parts = [model(imaging.to_float(torch.from_numpy(pixels[i : i + 256]))) for i in range(0, len(pixels), 256)]
    return torch.cat(parts).argmax(1).numpy()
