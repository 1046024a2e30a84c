"""DeepSMOTE (Dablain, Krawczyk and Chawla, 2021), from the paper: SMOTE in the code of an autoencoder.

The encoder and the decoder are those of DCGAN with four convolutions. Beside the reconstruction of a batch, they learn
to decode a permutation of one class's codes to that class's images in their own order, which makes codes of one class
exchangeable. New images are decoded from codes between a code and one of its neighbours of the class.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from imblearn.over_sampling import SMOTE
from torch import nn
from tqdm import tqdm

from rebalance import images

_LATENT = 300
_WIDTH = 64
_BATCH = 100
_LR = 2e-4
_NEIGHBOURS = 5


def _encoder(channels: int, size_px: int) -> nn.Module:
    widths = [channels, _WIDTH, 2 * _WIDTH, 4 * _WIDTH, 8 * _WIDTH]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (size_px // 16) ** 2, _LATENT))


def _decoder(channels: int, size_px: int) -> nn.Module:
    widths, side = [8 * _WIDTH, 4 * _WIDTH, 2 * _WIDTH, _WIDTH], size_px // 16
    layers: list[nn.Module] = [
        nn.Linear(_LATENT, widths[0] * side**2),
        nn.ReLU(),
        nn.Unflatten(1, (widths[0], side, side)),
    ]
    for before, after in itertools.pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Tanh())


def train(pixels: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Train encoder and decoder on pixels (n, H, W, C) uint8 of sides that 16 divides, and labels (n,)."""
    torch.manual_seed(seed)
    rng, (_, size_px, _, channels) = np.random.default_rng(seed), pixels.shape
    encoder, decoder = _encoder(channels, size_px), _decoder(channels, size_px)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], _LR)

    def batch(rows: np.ndarray) -> torch.Tensor:
        return images.to_float(torch.from_numpy(pixels[rows]))

    for _ in tqdm(range(steps), desc="DeepSMOTE", unit="step"):
        real = batch(rng.integers(len(labels), size=_BATCH))
        of_class = np.flatnonzero(labels == rng.choice(np.unique(labels)))
        same = batch(rng.choice(of_class, min(_BATCH, len(of_class)), replace=False))
        permuted = encoder(same)[torch.from_numpy(rng.permutation(len(same)))]
        loss = F.mse_loss(decoder(encoder(real)), real) + F.mse_loss(decoder(permuted), same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval(), decoder.eval()


@torch.inference_mode()
def oversample(
    encoder: nn.Module, decoder: nn.Module, pixels: np.ndarray, labels: np.ndarray, final: Mapping[int, int], seed: int
) -> dict[int, np.ndarray]:
    """Return new images (m, H, W, C) uint8 that take each label up to its final number."""
    codes = torch.cat(
        [encoder(images.to_float(torch.from_numpy(pixels[i : i + 256]))) for i in range(0, len(pixels), 256)]
    )
    fewest = min(int((labels == label).sum()) for label in final)
    smote = SMOTE(sampling_strategy=dict(final), k_neighbors=min(_NEIGHBOURS, fewest - 1), random_state=seed)
    every, found = smote.fit_resample(codes.numpy(), labels)
    new, of_new = torch.from_numpy(every[len(labels) :].astype(np.float32)), found[len(labels) :]
    decoded = np.concatenate([images.to_pixels(decoder(new[i : i + 256])) for i in range(0, len(new), 256)])
    return {label: decoded[of_new == label] for label in final}
