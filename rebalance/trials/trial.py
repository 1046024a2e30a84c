"""One trial: an arm trained with one seed, and its predictions on val and test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from rebalance.config import DownstreamOptions
from rebalance.errors import DivergedError
from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.trials.arms import Arm
from rebalance.trials.batches import ClassifierBatch, Mixture
from rebalance.trials.classifier import Classifier, balanced_loss, build_network, confusion, predict
from rebalance.trials.pools import Pool
from rebalance.trials.remedies import REMEDIES


@dataclass(frozen=True)
class Confusion:
    """Predictions of a trained classifier for val and test, and the time it took.

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
        mixture: the images that it draws.
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

    def run(self, val: Pool, test: Pool, on_step: Callable[[], None]) -> Confusion:
        """Train, then predict both splits.

        Args:
            val: images to choose on.
            test: images to report on.
            on_step: called after every step.

        Raises:
            DivergedError: a loss was not finite.
        """
        start, options, classifier = time.monotonic(), self.options, self.classifier()
        trainer = Trainer(classifier, replace(self.loop, seed=self.seed), self.device)
        rng = np.random.default_rng((self.seed, 0))
        for number in range(options.steps):
            trainer.step(self.batch(rng, number / options.steps), number)
            on_step()
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

    def classifier(self) -> Classifier:
        """Build the classifier, its weights drawn by the seed."""
        probabilities = self.mixture.probabilities
        network = build_network(self.options, self.mixture.real.pixels.shape[3], len(probabilities), self.seed)
        loss = REMEDIES[self.arm.remedy].image_loss(probabilities)
        return Classifier(self.options, network, self.arm.augment, loss)

    def batch(self, rng: np.random.Generator, progress: float) -> ClassifierBatch:
        """Draw the batch at a share of the steps."""
        late = self.arm.late and progress >= 1 - self.options.late
        return REMEDIES[self.arm.remedy].batch(self.mixture, rng, progress, late, self.options)
