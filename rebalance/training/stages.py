"""The stages of a run: which trainings it consists of, on which classes, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rebalance import storage
from rebalance.config import Recipe, TrainingOptions
from rebalance.config.method import StagePlan
from rebalance.config.options import without_defaults
from rebalance.index import ImageIndex
from rebalance.learning.loop import LoopOptions
from rebalance.modalities import Modalities
from rebalance.planning.plans import Plan

_FORMAT = 1  # one more whenever the same stage would come out otherwise


@dataclass(frozen=True)
class Unit:
    """One model of a run, or the classes of a stage that all models share.

    Attributes:
        name: folder name below checkpoints, logs and previews.
        targets: targets that it makes.
        classes: data-set classes that it is trained on.
        groups: sets of classes that translate into each other: each target with its sources.
        sources: source classes of each target.
    """

    name: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    groups: tuple[frozenset[str], ...]
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def labels(self, modalities: Modalities) -> tuple[int, ...]:
        """Return the modality id behind each translator class of this model."""
        return tuple(i for i, modality in enumerate(modalities.table) if modality.class_name in self.classes)


@dataclass(frozen=True)
class Stage:
    """One training of a run.

    Attributes:
        name: of its folder below checkpoints, logs and previews.
        plan: what the method says of it.
        unit: what it is trained on.
        last: whether its weights make the images of the unit's targets.
    """

    name: str
    plan: StagePlan
    unit: Unit
    last: bool

    @property
    def training(self) -> TrainingOptions:
        """Its training options."""
        return self.plan.training


def units_of(plan: Plan, index: ImageIndex, recipe: Recipe) -> tuple[Unit, ...]:
    """Return the models of a run: one for all targets ("joint"), or one a target ("per-class")."""
    sources = {target.name: tuple(source.name for source in target.sources) for target in plan.targets}
    if recipe.training.models == "joint":
        wanted = [("joint", tuple(sources))]
    else:
        wanted = [(f"class-{index.label(name):05d}", (name,)) for name in sources]
    units = []
    for name, targets in wanted:
        groups = tuple(frozenset((target, *sources[target])) for target in targets)
        classes = frozenset[str]().union(*groups)
        if not recipe.options.trains_on_targets:
            classes -= {target for target in targets if not any(target in sources[other] for other in targets)}
        own_sources = {target: sources[target] for target in targets}
        units.append(Unit(name, targets, _in_label_order(index, classes), groups, own_sources))
    return tuple(units)


def stages_of(plan: Plan, index: ImageIndex, recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a run in the order in which they are trained."""
    units, plans = units_of(plan, index, recipe), recipe.options.stages(recipe)
    stages = []
    for stage_plan in plans:
        last = stage_plan is plans[-1]
        if stage_plan.shared:
            stages.append(Stage(stage_plan.name, stage_plan, _shared_unit(stage_plan, plan, index), last=False))
            continue
        for unit in units:
            name = unit.name if last else f"{unit.name}-{stage_plan.name}"
            stages.append(Stage(name, stage_plan, unit, last))
    return tuple(stages)


def _shared_unit(stage_plan: StagePlan, plan: Plan, index: ImageIndex) -> Unit:
    rich = frozenset(source.name for target in plan.targets for source in target.sources)
    classes = frozenset(plan.classes()) if stage_plan.classes == "all" or not rich else rich
    return Unit(stage_plan.name, (), _in_label_order(index, classes), (classes,))


def _in_label_order(index: ImageIndex, classes: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in index.classes if name in classes)


def related_classes(unit: Unit, pairs: str) -> np.ndarray:
    """Return which classes of a model are paired, (n, n) bool: all, or those of a common target ("related")."""
    n = len(unit.classes)
    if pairs == "all":
        return np.ones((n, n), bool)
    related = np.eye(n, dtype=bool)
    for group in unit.groups:
        members = [number for number, name in enumerate(unit.classes) if name in group]
        related[np.ix_(members, members)] = True
    return related


def loop_options(training: TrainingOptions, seed: int) -> LoopOptions:
    """Return the loop options of a stage."""
    return LoopOptions(
        steps=training.steps,
        optimizer=training.optimizer,
        ema=training.ema,
        lr_decay=training.lr_decay,
        regularize_every_steps=training.regularize_every_steps,
        precision=training.precision,
        memory_format=training.memory_format,
        threads=training.threads,
        log_every_steps=training.log_every_steps,
        preview_every_steps=training.preview_every_steps,
        checkpoint_every_steps=training.checkpoint_every_steps,
        seed=seed,
    )


# Keys of the training section that change no weight.
_OBSERVING = ("log_every_steps", "preview_every_steps", "checkpoint_every_steps", "min_source_dependence")


def _weight_options(training: TrainingOptions) -> dict[str, Any]:
    return {key: value for key, value in without_defaults(training).items() if key not in _OBSERVING}


def stage_fingerprint(stage: Stage, recipe: Recipe, index: ImageIndex, modalities: Modalities) -> str:
    """Return the SHA-256 of what a stage's weights depend on, so that two runs can tell whether theirs are the same.

    It covers the images of each translator class and the options of all stages, since a stage may start from earlier
    ones; but neither names of files, nor other classes, nor options that change no weight.
    """
    hashes = index.column("hash")
    images = [
        [str(hashes[image]) for image in modalities.images_of(label).tolist()]
        for label in stage.unit.labels(modalities)
    ]
    trainings = [_weight_options(plan.training) for plan in recipe.options.stages(recipe)]
    data = {key: value for key, value in without_defaults(recipe.data).items() if key != "memory_gib"}
    parts = [_FORMAT, recipe.method, without_defaults(recipe.options), stage.plan.name, trainings, data, recipe.seed]
    text = storage.canonical_json([*parts, images, dict(stage.unit.sources)])
    return storage.sha256_bytes(text.encode())
