"""The classifier of a study as the training loop sees it, and its predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rebalance.config import DownstreamOptions, OptimizerOptions
from rebalance.learning.loop import LoopOptions
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable
from rebalance.networks.augmentations import diff_augment, random_flip
from rebalance.networks.classifier import ConvClassifier, ResidualClassifier
from rebalance.runtime.devices import without_waiting
from rebalance.trials.batches import ClassifierBatch, to_tensor
from rebalance.trials.pools import Pool
from rebalance.trials.remedies.base import ImageLoss, cross_entropy

_EVALUATION_BATCH = 512  # images; small enough for any device, large enough to keep it busy


class Classifier(Trainable):
    """A network with a loss of single images, perhaps weighted by class, mixed and augmented."""

    def __init__(
        self, options: DownstreamOptions, network: nn.Module, augment: bool, image_loss: ImageLoss = cross_entropy
    ) -> None:
        self.options, self.augment, self.image_loss = options, augment, image_loss
        self.networks = {"classifier": network}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One."""
        return (Phase("classifier", ("classifier",)),)

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """One."""
        return {"classifier": NetworkOptimizer(self.options.lr)}

    def forward(self, batch: ClassifierBatch, context: StepContext) -> torch.Tensor:
        """Return logits (B, classes) of the batch's images, augmented and mixed, some of their features dropped."""
        images = batch.images
        if self.augment:
            if "flip" in self.options.augmentations:
                images = random_flip(images, context.draws)
            policy = [name for name in self.options.augmentations if name == "translation"]
            images = diff_augment(images, policy, self.options.translation_fraction, context.draws)
        if batch.image_mix is not None:
            mix = batch.image_mix[:, None, None, None]
            images = mix * images + (1 - mix) * images.flip(0)
        network: Any = self.networks["classifier"]  # features and head, which torch's stubs take for tensors
        logits: torch.Tensor = network.head(self._dropped(network.features(images), context))
        return logits

    def _dropped(self, features: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Apply dropout (Srivastava et al., 2014), drawn like everything random in a step."""
        rate = self.options.dropout
        if not rate:
            return features
        kept = context.draws.uniform(*features.shape) >= rate
        return features * without_waiting(kept, features.device) / (1 - rate)

    def loss(self, phase: str, batch: ClassifierBatch, outputs: torch.Tensor, context: StepContext) -> Loss:
        """Return the weighted mean loss of the images, of both labels of mixed ones."""
        each = self.image_loss(outputs.float(), batch.labels) * batch.weights
        if batch.label_mix is not None:
            of_partners = self.image_loss(outputs.float(), batch.labels.flip(0)) * batch.weights.flip(0)
            each = batch.label_mix * each + (1 - batch.label_mix) * of_partners
        return Loss(each.mean(), {})


def build_network(options: DownstreamOptions, channels: int, n_classes: int, seed: int) -> nn.Module:
    """Build the network that the options name, its weights drawn by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.architecture == "resnet":
            return ResidualClassifier(
                channels, n_classes, stem=options.stem, width=options.width, blocks=options.blocks
            )
        return ConvClassifier(channels, n_classes, width=options.width, blocks=options.blocks)


def loop_options(options: DownstreamOptions, threads: int = 0) -> LoopOptions:
    """Return how the classifier is trained, precision, layout and perhaps threads still open."""
    adam = OptimizerOptions(name="adam", beta1=0.9, beta2=0.999, weight_decay=options.weight_decay)
    return LoopOptions(
        steps=options.steps, optimizer=adam, lr_decay=1.0, precision="auto", memory_format="auto", threads=threads
    )


@torch.inference_mode()
def predict(network: nn.Module, pool: Pool, device: torch.device, memory_format: torch.memory_format) -> torch.Tensor:
    """Return logits (n, classes) float32 on the CPU."""
    logits = [torch.zeros(0, len(pool.counts))]
    for first in range(0, len(pool.rows), _EVALUATION_BATCH):
        images = to_tensor(pool.pixels[pool.rows[first : first + _EVALUATION_BATCH]]).to(device)
        logits.append(network(images.contiguous(memory_format=memory_format)).float().cpu())
    return torch.cat(logits)


def confusion(logits: torch.Tensor, pool: Pool) -> np.ndarray:
    """Return images (classes, classes) int64 by true and predicted label."""
    n = len(pool.counts)
    return np.bincount(pool.labels * n + logits.argmax(1).numpy(), minlength=n * n).reshape(n, n)


def balanced_loss(logits: torch.Tensor, pool: Pool) -> float:
    """Return the mean over the pool's classes of their mean cross-entropy; 0 of an empty pool."""
    if not len(logits):
        return 0.0
    each = F.cross_entropy(logits, torch.from_numpy(pool.labels), reduction="none").numpy()
    of_classes = np.bincount(pool.labels, each, len(pool.counts))[pool.counts > 0] / pool.counts[pool.counts > 0]
    return float(of_classes.mean())
