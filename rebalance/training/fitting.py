"""`fit`: from a data set to a trained run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebalance import imaging, storage
from rebalance.config import Recipe, load_recipe
from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex
from rebalance.learning.checkpoints import CheckpointFolder, read_state
from rebalance.learning.image_store import ImageStore
from rebalance.learning.logs import TrainingLog
from rebalance.learning.loop import Trainer, train
from rebalance.learning.sampling import ClassPool, StageTrainable, TrainingPools, own_rows
from rebalance.measures.features import ENCODER
from rebalance.methods.base import BuildContext, Method, TrainedStage
from rebalance.modalities import Modalities, assign, embed, make_encoder, modality_preview
from rebalance.modalities.sampling import EncoderBatches
from rebalance.planning.images import images_of_target
from rebalance.planning.plans import Plan
from rebalance.runtime.devices import choose_device
from rebalance.runtime.ranks import Ranks, connected
from rebalance.training.decisions import (
    FitRequest,
    begin_or_resume,
    encoder_loop,
    needs_encoder,
    read_decided,
)
from rebalance.training.decoded import build_store
from rebalance.training.loading import reference_labels, target_labels, trained_stage
from rebalance.training.previews import SOURCE_DEPENDENCE, VARIANCE_SHARE, MethodObserver, ProbeDraw
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import Stage, loop_options, related_classes, stage_fingerprint, stages_of

logger = logging.getLogger(__name__)

COLLAPSED = 0.02
"""Below this share of the variance of real images, a generator's images count as one image."""

_EMBED_BATCH = 256


@dataclass(frozen=True)
class FitResult:
    """Result of a fit.

    Attributes:
        run: the run directory.
        plan: what was planned.
        steps: steps of each stage.
        scalars: last observed scalars of each stage.
        seconds: time taken now; a resumed run counts only the last call.
        resumed: whether the run had been begun before.
    """

    run: Path
    plan: Plan
    steps: dict[str, int]
    scalars: dict[str, dict[str, float]]
    seconds: float
    resumed: bool

    @property
    def source_dependence(self) -> dict[str, dict[str, float]]:
        """Source dependence of each model's targets; empty for a model that translates no sources."""
        prefix = f"{SOURCE_DEPENDENCE}/"
        return {
            name: {tag.removeprefix(prefix): value for tag, value in scalars.items() if tag.startswith(prefix)}
            for name, scalars in self.scalars.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {**asdict(self), "run": str(self.run), "plan": self.plan.to_json()}


def fit(
    data: str | Path,
    run: str | Path,
    recipe: str | Path | Recipe = "gpu-128",
    *,
    balance: str | float | Mapping[str, int] = "auto",
    max_multiple: float | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> FitResult:
    """Train a run on a data set; see `rebalance.api.fit`."""
    start = time.monotonic()
    request = FitRequest(Path(data), load_recipe(recipe, overrides, seed), balance, max_multiple, overwrite, progress)
    directory, place = RunDirectory(Path(run)), choose_device(device)
    if storage.is_folder(Path(data)) and storage.is_inside(directory.path, data):
        raise InputError(
            "`run` lies inside `data`, where it would be read as a class",
            value=str(run),
            remedy="Choose a folder outside `data`",
        )
    with connected(place) as ranks, contextlib.ExitStack() as held:
        _check_batch(request.recipe, ranks)
        decided = ranks.first_does(lambda: begin_or_resume(directory, request, place, held, ranks))
        if decided is None:
            decided = read_decided(directory, request.data)
        fitting = Fitting(directory, decided.recipe, decided.index, decided.plan, place, progress, ranks)
        fitting.run()
        ranks.wait()
        steps, scalars = fitting.outcome()
    seconds = round(time.monotonic() - start, 1)
    return FitResult(directory.path, fitting.plan, steps, scalars, seconds, decided.resumed)


def _check_batch(recipe: Recipe, ranks: Ranks) -> None:
    """Refuse a batch that the processes cannot share, before anything is read."""
    options = recipe.options
    own_rows(recipe.training.batch, ranks, parts=options.batch_parts, multiple=options.batch_multiple)


@dataclass(frozen=True)
class Fitting:
    """Trains what a run still lacks: modalities by the first process, then every stage by all."""

    directory: RunDirectory
    recipe: Recipe
    index: ImageIndex
    plan: Plan
    device: torch.device
    progress: bool
    ranks: Ranks = Ranks()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of the method, in order."""
        return stages_of(self.plan, self.index, self.recipe)

    def run(self) -> None:
        """Do what is still to be done."""
        finished = not self.directory.lost_modalities() and all(map(self._done, self.stages))
        if not self.ranks.any(not finished):
            return
        torch.set_num_threads(self.recipe.training.threads)
        store = self.ranks.first_does(self._prepare) or self._store()
        modalities = self.directory.modalities()
        earlier: dict[tuple[str, str], TrainedStage] = {}
        for stage in self.stages:
            self._train_stage(stage, modalities, store, earlier)
        self.ranks.first_does(self.directory.drop_cache)

    def _store(self) -> ImageStore:
        """Decode all train images; processes on one machine share a mapped file that the first has made."""
        image_ids = np.sort(np.concatenate([self.index.rows("train", name) for name in self.plan.classes()]))
        options = self.recipe.data if self.ranks.count == 1 else replace(self.recipe.data, memory_gib=0)
        return build_store(self.index, image_ids, options, self.directory.cache_path, self.progress)

    def _prepare(self) -> ImageStore:
        """Decode, and find the modalities where they are not there already."""
        store, lost = self._store(), self.directory.lost_modalities()
        if self.directory.modalities_path in lost:
            modalities = self._find_modalities(store)
        else:
            modalities = self.directory.modalities()
        if lost:
            sheet = modality_preview(modalities, lambda i: store.pixels[store.positions(np.array([i]))[0]])
            self.directory.save_modalities(modalities, self.index, imaging.png_bytes(sheet))
        return store

    def outcome(self) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
        """Return steps and last observed scalars of every stage."""
        steps, scalars = {}, {}
        for stage in self.stages:
            state = read_state(self._checkpoints(stage.name).paths()[-1])
            steps[stage.name], scalars[stage.name] = state.step, dict(state.scalars)
        return steps, scalars

    def _checkpoints(self, name: str) -> CheckpointFolder:
        return CheckpointFolder(self.directory.checkpoints(name))

    def _log(self, name: str) -> TrainingLog:
        return TrainingLog(self.directory.logs(name), self.directory.previews(name))

    def _done(self, stage: Stage) -> bool:
        paths = self._checkpoints(stage.name).paths()
        try:
            return bool(paths) and read_state(paths[-1]).step >= stage.training.steps
        except DamagedError:
            return False  # training restores the checkpoint before and takes the steps again

    def _find_modalities(self, store: ImageStore) -> Modalities:
        features = None
        if needs_encoder(self.recipe, self.plan):
            encoder, options = make_encoder(self.recipe), self.recipe.modalities.encoder
            trainer = Trainer(encoder, encoder_loop(self.recipe), self.device)
            batches = EncoderBatches(store, options.batch, self.recipe.seed)
            checkpoints, log = self._checkpoints(ENCODER), self._log(ENCODER)
            train(trainer, batches, checkpoints, log, name=ENCODER, progress=self.progress)

            def features(image_ids: np.ndarray) -> np.ndarray:
                return embed(encoder, _batches_of(store, image_ids, self.device))

        return assign(self.index, self.plan.modalities, self.recipe.modalities.by, features, self.recipe.seed)

    def _train_stage(
        self, stage: Stage, modalities: Modalities, store: ImageStore, earlier: dict[tuple[str, str], TrainedStage]
    ) -> None:
        """Train a stage to its end; add it, by its name and model, to the earlier ones where it is not the last."""
        if stage.last or not self._done(stage):
            of_model = {name: t for (name, model), t in earlier.items() if model in ("", stage.unit.name)}
            self._train(stage, modalities, store, of_model)
        if not stage.last:
            model = "" if stage.plan.shared else stage.unit.name
            earlier[stage.plan.name, model] = trained_stage(self.directory, stage, modalities)

    def _train(
        self, stage: Stage, modalities: Modalities, store: ImageStore, earlier: Mapping[str, TrainedStage]
    ) -> None:
        labels, recipe = stage.unit.labels(modalities), self.recipe
        fingerprint = stage_fingerprint(stage, recipe, self.index, modalities)
        self.ranks.first_does(lambda: self.directory.begin_stage(stage.name, fingerprint))
        trainable = recipe.options.build(BuildContext(recipe, stage.plan.name, labels, recipe.seed, earlier))
        trainer = Trainer(trainable, loop_options(stage.training, recipe.seed), self.device, self.ranks)
        batches = trainable.sampler(self._pools(stage, modalities, store), stage.training, recipe.seed, self.ranks)
        log = self._log(stage.name)
        train(
            trainer,
            batches,
            self._checkpoints(stage.name),
            log,
            name=stage.name,
            observer=self._observer(stage, trainable, modalities, store),
            progress=self.progress,
        )
        if self.ranks.first:
            self._warn_of_bad_images(stage, log)

    def _pools(self, stage: Stage, modalities: Modalities, store: ImageStore) -> TrainingPools:
        unit = stage.unit
        labels = unit.labels(modalities)
        pools = []
        for name in unit.classes:
            own = modalities.of_class(name)
            positions = tuple(store.positions(modalities.images_of(modality)) for modality in own)
            pools.append(ClassPool(name, tuple(labels.index(modality) for modality in own), positions))
        return TrainingPools(store, tuple(pools), related_classes(unit, stage.training.pairs), unit.sources)

    def _observer(
        self, stage: Stage, trainable: StageTrainable, modalities: Modalities, store: ImageStore
    ) -> MethodObserver | None:
        """Return what observes a model's targets; None for a stage that makes none of their images."""
        if not (stage.last and isinstance(trainable, Method)):
            return None
        labels, method = stage.unit.labels(modalities), trainable
        draw = ProbeDraw(
            method,
            self.recipe.seed,
            lambda image_ids: store.tensor(store.positions(image_ids)),
            lambda image_ids: reference_labels(image_ids.tolist(), labels, modalities),
        )
        probes = []
        for name in stage.unit.targets:
            law = None
            if not method.inputs.references:
                law = method.label_law(target_labels(stage.unit, name, modalities))
            images = images_of_target(self.plan, self.index, name)
            probes.append(draw.draw(name, self.plan.target(name).label, images, law))
        return MethodObserver(method, tuple(probes), self.device)

    def _warn_of_bad_images(self, stage: Stage, log: TrainingLog) -> None:
        least = self.recipe.training.min_source_dependence
        for target in stage.unit.targets:
            share = log.latest.get(f"{VARIANCE_SHARE}/{target}", np.inf)
            dependence = log.latest.get(f"{SOURCE_DEPENDENCE}/{target}", np.inf)
            if share < COLLAPSED:
                logger.warning(
                    "target %r: the generator has collapsed: its images vary %.2g times as much as real ones; start "
                    "again with another seed, a lower learning rate or training.precision=fp32", target, share,
                )  # fmt: skip
            elif dependence < least:
                logger.warning(
                    "target %r: source dependence %.2f is below %.2f: translations follow their reference and ignore "
                    "their source, so they add little that is new", target, dependence, least,
                )  # fmt: skip


def _batches_of(store: ImageStore, image_ids: np.ndarray, device: torch.device) -> Iterator[torch.Tensor]:
    positions = store.positions(image_ids)
    for first in range(0, len(positions), _EMBED_BATCH):
        yield store.tensor(positions[first : first + _EMBED_BATCH]).to(device)
