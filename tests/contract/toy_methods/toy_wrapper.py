"""Any translator with a further term: translations keep their source's features under a frozen classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from toy_networks import Critic

from rebalance.config import TrainingOptions
from rebalance.config.method import StagePlan
from rebalance.config.options import option
from rebalance.learning.batches import ClassBatch, PairBatch
from rebalance.learning.sampling import ClassSampler, StageTrainable, TrainingPools
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext
from rebalance.methods.base import BuildContext, Method
from rebalance.methods.registry import register
from rebalance.methods.wrappers.base import Wrapper, WrapperOptions
from rebalance.runtime.ranks import Ranks

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe

CLASSIFIER = "classifier"


@register("toy_wrapper")
@dataclass(frozen=True)
class ToyWrapperOptions(WrapperOptions):
    """Options of the toy."""

    weight: float = option(1.0, "weight of the term", at_least=0)
    width: int = option(2, "channels of the classifier", at_least=1)
    classifier_steps: int = option(3, "steps of the classifier", at_least=1)

    def stages(self, recipe: Recipe) -> tuple[StagePlan, ...]:
        """Return the classifier's training, shared by all models, before those of the wrapped method."""
        training = replace(recipe.training, steps=self.classifier_steps)
        return (StagePlan(CLASSIFIER, training, shared=True, classes="all"), *super().stages(recipe))

    def build(self, context: BuildContext) -> StageTrainable:
        """Build the classifier, or the wrapped method's stage with its term."""
        if context.stage == CLASSIFIER:
            return ToyClassifier(self, context)
        return super().build(context)

    def wrap(self, inner: Method, context: BuildContext) -> Wrapper:
        """Add the frozen classifier."""
        classes = context.earlier[CLASSIFIER].labels if context.earlier else context.labels
        classifier = new_classifier(self, context, len(classes))
        context.load_earlier(CLASSIFIER, CLASSIFIER, classifier)
        return ToyWrapper(inner, self.weight, classifier)


def new_classifier(options: ToyWrapperOptions, context: BuildContext, n_classes: int) -> Critic:
    """Return a classifier, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return Critic(context.recipe.data.channels, options.width, n_classes)


class ToyClassifier(StageTrainable):
    """A classifier of all translator classes."""

    def __init__(self, options: ToyWrapperOptions, context: BuildContext) -> None:
        self.networks = {CLASSIFIER: new_classifier(options, context, context.n_classes)}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return its only phase."""
        return (Phase(CLASSIFIER, (CLASSIFIER,)),)

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        """Return its optimiser."""
        return {CLASSIFIER: NetworkOptimizer(1e-2, "adam")}

    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> ClassSampler:
        """Return images of classes."""
        return ClassSampler(pools, options.batch, seed, ranks=ranks)

    def loss(self, phase: str, batch: ClassBatch, outputs: None, context: StepContext) -> Loss:
        """Return the cross-entropy."""
        value = F.cross_entropy(self.networks[CLASSIFIER](batch.images).float(), batch.labels)
        return Loss(value, {"cross_entropy": value})


class ToyWrapper(Wrapper):
    """A translator whose translations keep their source's features."""

    term_name = "kept"

    def __init__(self, inner: Method, weight: float, classifier: Critic) -> None:
        super().__init__(inner, weight, {CLASSIFIER: classifier})
        self.classifier = classifier

    def term(self, batch: PairBatch, translations: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Return the mean absolute difference of features."""
        with torch.no_grad():
            wanted = self.classifier.features(batch.source).float()
        return F.l1_loss(self.classifier.features(translations).float(), wanted)
