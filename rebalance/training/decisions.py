"""Decisions before step 0, made once: the plan, and how this machine computes fastest."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rebalance import storage
from rebalance.config import Recipe
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.learning.batches import ImageBatch
from rebalance.learning.loop import LoopOptions
from rebalance.learning.timing import Comparison, choose, described
from rebalance.measures.features import make_extractor
from rebalance.methods.base import make_method
from rebalance.modalities import make_encoder
from rebalance.planning.planner import make_plan
from rebalance.planning.plans import Plan
from rebalance.runtime.devices import cpu_count
from rebalance.runtime.ranks import Ranks
from rebalance.training.examples import example_pools
from rebalance.training.forecast import with_estimate
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import loop_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitRequest:
    """Request of a fit.

    Attributes:
        data: the data set.
        recipe: the recipe, "auto" not yet resolved.
        balance: targets and amounts.
        max_multiple: cap on synthetic images of a class, times its real ones.
        overwrite: whether what the run directory holds is deleted first.
        progress: whether progress bars are shown.
    """

    data: Path
    recipe: Recipe
    balance: str | float | Mapping[str, int]
    max_multiple: float | None
    overwrite: bool
    progress: bool


@dataclass(frozen=True)
class Decided:
    """Decisions that a run is made of.

    Attributes:
        recipe: the resolved recipe.
        index: the data set with its val split.
        plan: the plan.
        resumed: whether all of it had been decided before.
    """

    recipe: Recipe
    index: ImageIndex
    plan: Plan
    resumed: bool


def begin_or_resume(
    directory: RunDirectory, request: FitRequest, device: torch.device, held: contextlib.ExitStack, ranks: Ranks
) -> Decided:
    """Lock the run as long as `held` is open; decide what is to be trained, or read what was decided.

    Raises:
        InputError: wrong input.
        RefusedError: the run was begun with another request, or another process works on it.
    """
    recipe = request.recipe
    index = build_index(request.data, recipe.data.sublabel_column, request.progress)
    index = carve_validation(index, recipe.data.val_fraction, recipe.seed)
    held.enter_context(storage.locked(directory.path))
    if request.overwrite or not directory.begun:
        directory.clear()
    storage.remove_partials(directory.path)
    if directory.begun:
        directory.check_same(recipe, index, request.balance, request.max_multiple)
        return replace(read_decided(directory, request.data), resumed=True)
    torch.set_num_threads(recipe.training.threads or cpu_count())
    plan = make_plan(index, recipe, make_extractor(recipe.features, device), request.balance, request.max_multiple)
    plan = with_estimate(index, recipe, plan, device)
    recipe = with_timed_choices(recipe, plan, device, ranks)
    directory.begin(recipe, index, plan)
    return Decided(recipe, index, plan, resumed=False)


def read_decided(directory: RunDirectory, data: Path) -> Decided:
    """Read what was decided, with the data set where it is now."""
    return Decided(directory.recipe(), directory.index().moved_to(data), directory.plan(), resumed=False)


def needs_encoder(recipe: Recipe, plan: Plan) -> bool:
    """Return whether any class is split by clustering, so that an encoder is trained."""
    return recipe.modalities.by in ("contrastive", "vae") and any(k > 1 for k in plan.modalities.values())


def encoder_loop(recipe: Recipe) -> LoopOptions:
    """Return the loop options of the encoder: Adam as in SimCLR's small settings."""
    encoder, training = recipe.modalities.encoder, recipe.training
    return LoopOptions(
        steps=encoder.steps,
        optimizer=replace(training.optimizer, name="adam", beta1=0.9, beta2=0.999, weight_decay=1e-6),
        precision=encoder.precision,
        memory_format=encoder.memory_format,
        threads=training.threads,
        log_every_steps=training.log_every_steps,
        checkpoint_every_steps=training.checkpoint_every_steps,
        seed=recipe.seed,
    )


def with_timed_choices(recipe: Recipe, plan: Plan, device: torch.device, ranks: Ranks) -> Recipe:
    """Time threads, precisions and layouts of the method and of the encoder; return the recipe without "auto"."""
    training, encoder = recipe.training, recipe.modalities.encoder
    n_classes = max(sum(plan.modalities.values()), 1)
    method = make_method(recipe, n_classes, seed=recipe.seed)
    # All processes draw the same images, so any place among them will do for timing.
    batch = method.sampler(example_pools(recipe, n_classes), training, recipe.seed, Ranks(0, ranks.count))(0)
    choice, comparisons = choose(method, loop_options(training, recipe.seed), device, batch)
    _say("translator", choice, comparisons)
    training = replace(
        training,
        precision=choice.precision,
        memory_format=choice.memory_format,
        threads=choice.threads or cpu_count(),
    )
    recipe = replace(recipe, training=training)
    if needs_encoder(recipe, plan):
        size = recipe.data.size_px
        noise = torch.rand(encoder.batch, recipe.data.channels, size, size) * 2 - 1
        choice, comparisons = choose(make_encoder(recipe), encoder_loop(recipe), device, ImageBatch(noise))
        _say("encoder", choice, comparisons)
    else:
        choice = replace(encoder_loop(recipe), precision="fp32", memory_format="contiguous")
    encoder = replace(encoder, precision=choice.precision, memory_format=choice.memory_format)
    return replace(recipe, modalities=replace(recipe.modalities, encoder=encoder))


def _say(what: str, choice: LoopOptions, comparisons: list[Comparison]) -> None:
    if comparisons:
        logger.info("%s: %s chosen (%s)", what, described(choice), "; ".join(map(str, comparisons)))
