"""The classifier as the training loop sees it, and one trial: an arm trained with one seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rebalance.augmentations import diff_augment, random_flip
from rebalance.config import DownstreamOptions, OptimizerOptions
from rebalance.devices import without_waiting
from rebalance.errors import DivergedError
from rebalance.networks.classifier import ConvClassifier, ResidualClassifier
from rebalance.trainable import Loss, Phase, StepContext, Trainable
from rebalance.training.loop import LoopOptions, Trainer
from rebalance.trials.arms import MIXUP, WEIGHTED, Arm
from rebalance.trials.pools import ClassifierBatch, Mixture, Pool, to_tensor

_EVALUATION_BATCH = 512


class Classifier(Trainable):
    """A network with cross-entropy, optionally weighted by class, mixed (Zhang et al., 2018) and augmented."""

    def __init__(self, options: DownstreamOptions, network: nn.Module, augment: bool) -> None:
        self.options, self.augment = options, augment
        self.networks = {"classifier": network}

    @classmethod
    def build(cls, options: DownstreamOptions, channels: int, n_classes: int, augment: bool, seed: int) -> Classifier:
        """Build the network that the options name, its weights drawn by a seed."""
        sizes = {"width": options.width, "blocks": options.blocks}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if options.architecture == "resnet":
                network: nn.Module = ResidualClassifier(channels, n_classes, stem=options.stem, **sizes)
            else:
                network = ConvClassifier(channels, n_classes, **sizes)
        return cls(options, network, augment)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One."""
        return (Phase("classifier", ("classifier",), self.options.lr),)

    def forward(self, batch: ClassifierBatch, context: StepContext) -> torch.Tensor:
        """Return logits (B, classes) of the batch's images, augmented and mixed, some of their features dropped."""
        images = batch.images
        if self.augment:
            if "flip" in self.options.augmentations:
                images = random_flip(images, context.draws)
            policy = [name for name in self.options.augmentations if name == "translation"]
            images = diff_augment(images, policy, self.options.translation_fraction, context.draws)
        if batch.mix is not None:
            mix = batch.mix[:, None, None, None]
            images = mix * images + (1 - mix) * images.flip(0)
        network = self.networks["classifier"]
        return network.head(self._dropped(network.features(images), context))

    def _dropped(self, features: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Apply dropout (Srivastava et al., 2014), drawn like everything random in a step."""
        rate = self.options.dropout
        if not rate:
            return features
        kept = context.draws.uniform(*features.shape) >= rate
        return features * without_waiting(kept, features.device) / (1 - rate)

    def loss(self, phase: str, batch: ClassifierBatch, outputs: torch.Tensor, context: StepContext) -> Loss:
        """Return the weighted cross-entropy, of both labels of mixed images."""

        def weighted(labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(outputs.float(), labels, reduction="none") * batch.weights[labels]

        each = weighted(batch.labels)
        if batch.mix is not None:
            each = batch.mix * each + (1 - batch.mix) * weighted(batch.labels.flip(0))
        return Loss(each.mean(), {})


@dataclass(frozen=True)
class Confusion:
    """What a trained classifier made of val and test, and how long it took.

    Attributes:
        val: (classes, classes) int64, images by true and predicted label.
        test: the same.
        val_loss: mean over the classes of the cross-entropy of their val images; 0 without any.
        seconds: training and prediction.
    """

    val: np.ndarray
    test: np.ndarray
    val_loss: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """An arm with a seed, ready to run.

    Attributes:
        arm: the arm, its remedy resolved.
        seed: seed of weights, draws and augmentation.
        mixture: what is drawn.
        options: the classifier.
        loop: precision, layout and threads, already chosen.
        device: where.
    """

    arm: Arm
    seed: int
    mixture: Mixture
    options: DownstreamOptions
    loop: LoopOptions
    device: torch.device

    def run(self, val: Pool, test: Pool, step: Callable[[], None]) -> Confusion:
        """Train, then predict both splits.

        Raises:
            DivergedError: a loss was not finite.
        """
        start = time.monotonic()
        channels = self.mixture.real.pixels.shape[3]
        n_classes, options = len(self.mixture.probabilities), self.options
        classifier = Classifier.build(options, channels, n_classes, self.arm.augment, self.seed)
        trainer = Trainer(classifier, replace(self.loop, seed=self.seed), self.device)
        rng = np.random.default_rng((self.seed, 0))
        for number in range(options.steps):
            trainer.step(self.batch(rng, number / options.steps), number)
            step()
        if bool(trainer.diverged):
            raise DivergedError(
                f"the classifier of {self.arm.name} diverged with seed {self.seed}", remedy="Lower downstream.lr"
            )
        network = classifier.networks["classifier"].eval()
        of_val, of_test = (predict(network, pool, self.device, trainer.memory_format) for pool in (val, test))
        return Confusion(
            val=confusion(of_val, val),
            test=confusion(of_test, test),
            val_loss=balanced_loss(of_val, val),
            seconds=round(time.monotonic() - start, 2),
        )

    def batch(self, rng: np.random.Generator, progress: float) -> ClassifierBatch:
        """Draw the batch at a share of the steps."""
        options, remedy = self.options, self.arm.remedy
        late = self.arm.late and progress >= 1 - options.late
        pixels, labels = self.mixture.draw(options.batch, rng, late)
        weights = np.ones(len(self.mixture.probabilities), np.float32)
        if remedy == WEIGHTED or (remedy == MIXUP and progress >= 1 - options.deferred):
            weights = class_weights(self.mixture.probabilities)
        mix = None
        if remedy == MIXUP:
            mix = torch.from_numpy(rng.beta(options.mixup_alpha, options.mixup_alpha, len(labels)).astype(np.float32))
        return ClassifierBatch(to_tensor(pixels), torch.from_numpy(labels), torch.from_numpy(weights), mix)


def class_weights(probabilities: np.ndarray) -> np.ndarray:
    """Return weights (classes,) float32 that make every class count the same; 0 for one that is never drawn."""
    present = probabilities > 0
    weights = np.zeros(len(probabilities), np.float32)
    weights[present] = 1 / (probabilities[present] * present.sum())
    return weights


def loop_options(options: DownstreamOptions, threads: int = 0) -> LoopOptions:
    """Return how the classifier is trained, precision, layout and perhaps threads still open."""
    adam = OptimizerOptions(name="adam", beta1=0.9, beta2=0.999, weight_decay=options.weight_decay)
    return LoopOptions(
        steps=options.steps, optimizer=adam, lr_decay=1.0, precision="auto", memory_format="auto", threads=threads
    )


@torch.inference_mode()
def predict(network: nn.Module, pool: Pool, device: torch.device, memory_format: torch.memory_format) -> torch.Tensor:
    """Return logits (n, classes) float32 on the CPU."""
    found = [torch.zeros(0, len(pool.counts))]
    for first in range(0, len(pool.rows), _EVALUATION_BATCH):
        images = to_tensor(pool.pixels[pool.rows[first : first + _EVALUATION_BATCH]]).to(device)
        found.append(network(images.contiguous(memory_format=memory_format)).float().cpu())
    return torch.cat(found)


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
