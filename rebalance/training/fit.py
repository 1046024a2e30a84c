"""`fit`: from a data set to a trained run."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebalance import files, images
from rebalance.config import Recipe, load_recipe
from rebalance.devices import choose_device, cpu_count
from rebalance.errors import DamagedError, InputError
from rebalance.features import ENCODER, make_extractor
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.methods import PairBatch, make_method
from rebalance.modalities import ImageBatch, Modalities, assign, embed, make_encoder, modality_preview
from rebalance.planning import Plan, make_plan
from rebalance.ranks import Ranks, joined
from rebalance.training.checkpoints import CheckpointFolder, read_state
from rebalance.training.data import EncoderBatches, ImageStore, PairBatches, build_store, make_pools
from rebalance.training.estimate import with_estimate
from rebalance.training.loading import reference_labels
from rebalance.training.logs import TrainingLog
from rebalance.training.loop import LoopOptions, Trainer, train
from rebalance.training.precision import Duel, choose, described
from rebalance.training.previews import TranslationObserver, draw_probe
from rebalance.training.run import RunDirectory, Unit, units_of

logger = logging.getLogger(__name__)

COLLAPSED = 0.02
"""Below this share of the variance of real images, a generator's images count as one image."""
_EMBED_BATCH = 256


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Attributes:
        run: the run directory.
        plan: what was planned.
        steps: steps of each model.
        scalars: last observed scalars of each model, source dependence among them.
        seconds: time taken now; a resumed run counts only the last sitting.
        resumed: whether the run had been begun before.
    """

    run: Path
    plan: Plan
    steps: dict[str, int]
    scalars: dict[str, dict[str, float]]
    seconds: float
    resumed: bool

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
    device: str = "auto",
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> FitResult:
    """Train a run on a data set; the same call again resumes it.

    Args:
        data: image folder, manifest or shards.
        run: the run directory, made or resumed.
        recipe: name, YAML file or a loaded recipe.
        balance: targets and amounts, see `rebalance.planning.parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.
        overrides: `key=value` changes of the recipe.
        device: "auto", "cpu" or "cuda".
        seed: replaces the recipe's.
        overwrite: delete what the run directory holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: the run was begun with another request, or another process works on it.
        InterruptedRunError: stopped by a signal; everything is saved.
        DivergedError: a value was not finite; the last checkpoint is intact.
    """
    start = time.monotonic()
    request = _Request(Path(data), load_recipe(recipe, overrides, seed), balance, max_multiple, overwrite, progress)
    directory, place = RunDirectory(Path(run)), choose_device(device)
    if Path(data).is_dir() and directory.path.resolve().is_relative_to(Path(data).resolve()):
        raise InputError(
            "--run lies inside DATA, where it would be read as a class",
            value=str(run),
            remedy="Choose a folder outside DATA",
        )
    with joined(place) as ranks, contextlib.ExitStack() as held:
        if ranks.count > 1:
            pairs_per_class = make_method(request.recipe, 1, seed=request.recipe.seed).pairs_per_class
            ranks.share_of(request.recipe.training.batch, "training.batch", pairs_per_class)
        resumed = bool(ranks.first_does(lambda: _begin_or_resume(directory, request, place, held, ranks)))
        index = directory.index().moved_to(Path(data))
        fitting = Fitting(directory, directory.recipe(), index, directory.plan(), place, progress, ranks)
        fitting.run()
        ranks.wait()
        steps, scalars = fitting.outcome()
    return FitResult(directory.path, fitting.plan, steps, scalars, round(time.monotonic() - start, 1), resumed)


@dataclass(frozen=True)
class _Request:
    """What a fit was asked for."""

    data: Path
    recipe: Recipe
    balance: str | float | Mapping[str, int]
    max_multiple: float | None
    overwrite: bool
    progress: bool


def _begin_or_resume(
    directory: RunDirectory, request: _Request, device: torch.device, held: contextlib.ExitStack, ranks: Ranks
) -> bool:
    """Lock the run as long as `held` is open, and decide what is to be trained; return whether it had been decided."""
    recipe = request.recipe
    index = build_index(request.data, recipe.data.sublabel_column, request.progress)
    index = carve_validation(index, recipe.data.val_fraction, recipe.seed)
    held.enter_context(files.locked(directory.path))
    if request.overwrite or not directory.begun:
        directory.clear()
    files.remove_partials(directory.path)
    resumed = directory.begun
    if resumed:
        directory.check_same(recipe, index, request.balance, request.max_multiple)
    else:
        _begin(directory, request, index, device, ranks)
    return resumed


def _begin(directory: RunDirectory, request: _Request, index: ImageIndex, device: torch.device, ranks: Ranks) -> None:
    """Decide everything that is decided before step 0, and write it."""
    recipe = request.recipe
    torch.set_num_threads(recipe.training.threads or cpu_count())
    plan = make_plan(index, recipe, make_extractor(recipe.features, device), request.balance, request.max_multiple)
    plan = with_estimate(index, recipe, plan, device)
    directory.begin(_with_timed_choices(recipe, plan, device, ranks), index, plan)


def _with_timed_choices(recipe: Recipe, plan: Plan, device: torch.device, ranks: Ranks) -> Recipe:
    """Time threads, precisions and layouts of the method and of the encoder; return the recipe without "auto"."""
    rng = torch.Generator().manual_seed(recipe.seed)
    size, training, encoder = recipe.data.size_px, recipe.training, recipe.modalities.encoder

    def noise(n: int) -> torch.Tensor:
        return torch.rand(n, recipe.data.channels, size, size, generator=rng) * 2 - 1

    method = make_method(recipe, max(sum(plan.modalities.values()), 1), seed=recipe.seed)
    share = training.batch // ranks.count
    labels = torch.zeros(share, dtype=torch.int64)
    pair = PairBatch(noise(share), labels, noise(share), labels)
    chosen, duels = choose(method, method_loop(recipe), device, pair)
    _say("translator", chosen, duels)
    training = replace(
        training,
        precision=chosen.precision,
        memory_format=chosen.memory_format,
        threads=chosen.threads or cpu_count(),
    )
    recipe = replace(recipe, training=training)
    if clusters(recipe, plan):
        chosen, duels = choose(make_encoder(recipe), encoder_loop(recipe), device, ImageBatch(noise(encoder.batch)))
        _say("encoder", chosen, duels)
    else:
        chosen = replace(encoder_loop(recipe), precision="fp32", memory_format="contiguous")
    encoder = replace(encoder, precision=chosen.precision, memory_format=chosen.memory_format)
    return replace(recipe, modalities=replace(recipe.modalities, encoder=encoder))


def _say(what: str, chosen: LoopOptions, duels: list[Duel]) -> None:
    if duels:
        measured = "; ".join(map(str, duels))
        logger.info("%s: %s chosen (%s)", what, described(chosen), measured)


def clusters(recipe: Recipe, plan: Plan) -> bool:
    """Whether any class is split by clustering, so that an encoder is needed."""
    return recipe.modalities.by in ("contrastive", "vae") and any(k > 1 for k in plan.modalities.values())


def method_loop(recipe: Recipe) -> LoopOptions:
    """Return the loop options of the method."""
    training = recipe.training
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
        seed=recipe.seed,
    )


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


@dataclass(frozen=True)
class Fitting:
    """One sitting of a run: modalities first, found by the first process, then every model, trained by all."""

    directory: RunDirectory
    recipe: Recipe
    index: ImageIndex
    plan: Plan
    device: torch.device
    progress: bool
    ranks: Ranks = Ranks()

    def run(self) -> None:
        """Do what is still to be done."""
        units = units_of(self.plan, self.index, self.recipe)
        finished = not self.directory.lost_modalities() and all(self._done(unit) for unit in units)
        if not self.ranks.any(not finished):
            return
        torch.set_num_threads(self.recipe.training.threads)
        store = self.ranks.first_does(self._prepare) or self._store()
        modalities = self.directory.modalities()
        for unit in units:
            self._train_unit(unit, modalities, store)
        self.ranks.first_does(lambda: shutil.rmtree(self.directory.cache_path, ignore_errors=True))

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
            self.directory.save_modalities(modalities, self.index, images.png_bytes(sheet))
        return store

    def outcome(self) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
        """Return steps and last observed scalars of every model."""
        steps, scalars = {}, {}
        for unit in units_of(self.plan, self.index, self.recipe):
            checkpoint = self._checkpoints(unit.name).paths()[-1]
            state = read_state(checkpoint)
            steps[unit.name], scalars[unit.name] = state["step"], state["scalars"]
        return steps, scalars

    def _checkpoints(self, name: str) -> CheckpointFolder:
        return CheckpointFolder(self.directory.checkpoints(name))

    def _log(self, name: str) -> TrainingLog:
        return TrainingLog(self.directory.logs(name), self.directory.previews(name))

    def _done(self, unit: Unit) -> bool:
        paths = self._checkpoints(unit.name).paths()
        try:
            return bool(paths) and read_state(paths[-1])["step"] >= self.recipe.training.steps
        except DamagedError:
            return False  # training restores the checkpoint before and takes the steps again

    def _find_modalities(self, store: ImageStore) -> Modalities:
        features = None
        if clusters(self.recipe, self.plan):
            encoder, options = make_encoder(self.recipe), self.recipe.modalities.encoder
            trainer = Trainer(encoder, encoder_loop(self.recipe), self.device)
            batches = EncoderBatches(store, options.batch, self.recipe.seed)
            train(
                trainer, batches, self._checkpoints(ENCODER), self._log(ENCODER), name="encoder", progress=self.progress
            )

            def features(image_ids: np.ndarray) -> np.ndarray:
                return embed(encoder, _batches_of(store, image_ids, self.device))

        return assign(self.index, self.plan.modalities, self.recipe.modalities.by, features, self.recipe.seed)

    def _train_unit(self, unit: Unit, modalities: Modalities, store: ImageStore) -> None:
        labels = unit.labels(modalities)
        method = make_method(self.recipe, len(labels), seed=self.recipe.seed)
        trainer = Trainer(method, method_loop(self.recipe), self.device, self.ranks)
        batches = PairBatches(
            store,
            make_pools(unit.classes, lambda name: _label_images(name, labels, modalities), store),
            related_classes(unit, self.recipe),
            self.recipe.training.draw,
            self.recipe.training.batch,
            self.recipe.seed,
            method.pairs_per_class,
            self.ranks,
        )
        probes = tuple(
            draw_probe(
                self.plan.target(target),
                self.index,
                lambda ids: reference_labels(ids, labels, modalities),
                lambda ids: store.tensor(store.positions(ids)),
                self.recipe.seed,
            )
            for target in unit.targets
        )
        log = self._log(unit.name)
        observer = TranslationObserver(method, probes, self.device)
        train(
            trainer,
            batches,
            self._checkpoints(unit.name),
            log,
            name=unit.name,
            observer=observer,
            progress=self.progress,
        )
        if self.ranks.first:
            self._warn_of_bad_translations(unit, log)

    def _warn_of_bad_translations(self, unit: Unit, log: TrainingLog) -> None:
        least = self.recipe.training.min_source_dependence
        for target in unit.targets:
            dependence, share = (log.latest[f"{kind}/{target}"] for kind in ("source_dependence", "variance_share"))
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


def _label_images(name: str, labels: tuple[int, ...], modalities: Modalities) -> list[tuple[int, np.ndarray]]:
    return [(labels.index(modality), modalities.images_of(modality)) for modality in modalities.of_class(name)]


def related_classes(unit: Unit, recipe: Recipe) -> np.ndarray:
    """Return which classes of a model are paired, (n, n) bool: all, or those of a common target."""
    n = len(unit.classes)
    if recipe.training.pairs == "all":
        return np.ones((n, n), bool)
    related = np.eye(n, dtype=bool)
    for group in unit.groups:
        members = [number for number, name in enumerate(unit.classes) if name in group]
        related[np.ix_(members, members)] = True
    return related
