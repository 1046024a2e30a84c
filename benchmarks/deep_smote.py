"""DeepSMOTE (Dablain, Krawczyk and Chawla, 2021), from the paper: SMOTE in the code of an autoencoder.

The encoder and the decoder are those of DCGAN with four convolutions. Beside the reconstruction of a batch, they learn
to decode a permutation of one class's codes to that class's images in their own order, which makes codes of one class
exchangeable. New images are decoded from codes between a code and one of its neighbours of the class.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imblearn.over_sampling import SMOTE
from torch import nn

from rebalance import imaging, storage
from rebalance.config import OptimizerOptions
from rebalance.learning.checkpoints import CheckpointFolder
from rebalance.learning.logs import TrainingLog
from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.learning.loop import train as run_loop
from rebalance.learning.timing import choose
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable

_LATENT = 300
_WIDTH = 64
_BATCH = 100
_LR = 2e-4
_NEIGHBOURS = 5
_CHECKPOINT_STEPS = 100


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


@dataclass(frozen=True)
class DeepSmoteBatch:
    """What a step sees.

    Attributes:
        real: (B, C, H, W) float32 in [-1, 1], images of any class.
        same: (b, C, H, W), images of one class.
        order: (b,) int64, whose code each of these is decoded from.
    """

    real: torch.Tensor
    same: torch.Tensor
    order: torch.Tensor

    def __len__(self) -> int:
        return len(self.real)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> DeepSmoteBatch:
        """Move to a device, without waiting."""
        moved = [part.to(device, non_blocking=True, memory_format=memory_format) for part in (self.real, self.same)]
        return DeepSmoteBatch(*moved, self.order.to(device, non_blocking=True))

    def pin_memory(self) -> DeepSmoteBatch:
        """Return the batch in page-locked memory."""
        return DeepSmoteBatch(self.real.pin_memory(), self.same.pin_memory(), self.order.pin_memory())


class DeepSmote(Trainable):
    """The autoencoder as the training loop sees it."""

    def __init__(self, channels: int, size_px: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = {"encoder": _encoder(channels, size_px), "decoder": _decoder(channels, size_px)}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One."""
        return (Phase("autoencoder", ("encoder", "decoder")),)

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """One rate for both."""
        return dict.fromkeys(("encoder", "decoder"), NetworkOptimizer(_LR))

    def forward(self, batch: DeepSmoteBatch, context: StepContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images decoded from their own codes, and those of one class from each other's."""
        encoder, decoder = self.networks["encoder"], self.networks["decoder"]
        return decoder(encoder(batch.real)), decoder(encoder(batch.same)[batch.order])

    def loss(
        self, phase: str, batch: DeepSmoteBatch, outputs: tuple[torch.Tensor, torch.Tensor], context: StepContext
    ) -> Loss:
        """Return the squared error of both."""
        own, others = F.mse_loss(outputs[0].float(), batch.real), F.mse_loss(outputs[1].float(), batch.same)
        return Loss(own + others, {"reconstruction": own, "penalty": others})


@dataclass(frozen=True)
class DeepSmoteBatches:
    """Draws the batch of a step.

    Attributes:
        pixels: (n, H, W, C) uint8.
        labels: (n,).
        seed: seed of all draws.
    """

    pixels: np.ndarray
    labels: np.ndarray
    seed: int

    def __call__(self, step: int) -> DeepSmoteBatch:
        """Return it; every class is as likely to be permuted."""
        rng = np.random.default_rng((self.seed, step))
        of_class = np.flatnonzero(self.labels == rng.choice(np.unique(self.labels)))
        same = rng.choice(of_class, min(_BATCH, len(of_class)), replace=False)
        real, same = (
            imaging.to_float(torch.from_numpy(self.pixels[rows]))
            for rows in (rng.integers(len(self.labels), size=_BATCH), same)
        )
        return DeepSmoteBatch(real, same, torch.from_numpy(rng.permutation(len(same))))


def train(
    pixels: np.ndarray, labels: np.ndarray, steps: int, seed: int, folder: Path, device: torch.device, threads: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder, on the CPU, trained on images of sides that 16 divides; the same call again resumes.

    Args:
        pixels: (n, H, W, C) uint8.
        labels: (n,).
        steps: steps in all.
        seed: seed of weights and draws.
        folder: where checkpoints and logs go.
        device: where to train.
        threads: CPU threads; 0: whatever is fastest.
    """
    batches = DeepSmoteBatches(pixels, labels, seed)
    model = DeepSmote(pixels.shape[3], pixels.shape[1], seed)
    adam = OptimizerOptions(name="adam", beta1=0.9, beta2=0.999, weight_decay=0.0)
    options = LoopOptions(
        steps=steps, optimizer=adam, precision="auto", memory_format="auto", threads=threads,
        checkpoint_every_steps=_CHECKPOINT_STEPS, seed=seed,
    )  # fmt: skip
    kept = folder / "loop.json"
    if not kept.is_file():
        loop, _ = choose(model, options, device, batches(0))
        chosen = {"precision": loop.precision, "memory_format": loop.memory_format, "threads": loop.threads}
        storage.write_sealed_json(kept, chosen)
    loop = replace(options, **storage.read_sealed_json(kept))
    if loop.threads:
        torch.set_num_threads(loop.threads)
    log = TrainingLog(folder / "logs", folder / "previews")
    run_loop(
        Trainer(model, loop, device), batches, CheckpointFolder(folder / "checkpoints"), log, name="DeepSMOTE",
        progress=True,
    )  # fmt: skip
    return model.networks["encoder"].cpu().eval(), model.networks["decoder"].cpu().eval()


@torch.inference_mode()
def oversample(
    encoder: nn.Module, decoder: nn.Module, pixels: np.ndarray, labels: np.ndarray, final: Mapping[int, int], seed: int
) -> dict[int, np.ndarray]:
    """Return new images (m, H, W, C) uint8 that take each label up to its final number."""
    codes = torch.cat(
        [encoder(imaging.to_float(torch.from_numpy(pixels[i : i + 256]))) for i in range(0, len(pixels), 256)]
    )
    fewest = min(int((labels == label).sum()) for label in final)
    smote = SMOTE(sampling_strategy=dict(final), k_neighbors=min(_NEIGHBOURS, fewest - 1), random_state=seed)
    every, found = smote.fit_resample(codes.numpy(), labels)
    new, of_new = torch.from_numpy(every[len(labels) :].astype(np.float32)), found[len(labels) :]
    decoded = np.concatenate([imaging.to_pixels(decoder(new[i : i + 256])) for i in range(0, len(new), 256)])
    return {label: decoded[of_new == label] for label in final}
