"""`downstream`: does a classifier gain from the synthetic images, and from how many of them?"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rebalance import storage
from rebalance.config import Recipe, load_recipe
from rebalance.config.requests import StudyOptions
from rebalance.errors import DamagedError, InputError
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.index import build_index
from rebalance.learning.loop import LoopOptions
from rebalance.learning.timing import choose, described
from rebalance.planning.tuned import TUNED, Tuned, read_tuned, write_tuned
from rebalance.runtime.devices import choose_device
from rebalance.shards.given import GivenImages, given_images
from rebalance.shards.records import Manifest, ValidationShare, manifest_of
from rebalance.shards.request import GenerationRequest, device_kind
from rebalance.training import RunDirectory
from rebalance.trials.arms import CONTROL, DEFAULT, UNFILTERED, Arm, parse_arms, parse_multiple
from rebalance.trials.batches import Mixture
from rebalance.trials.classifier import loop_options
from rebalance.trials.control import translates
from rebalance.trials.folder import opened_study, results_folder
from rebalance.trials.held_out import HeldOut
from rebalance.trials.material import TRAIN, Material, MaterialLoader
from rebalance.trials.records import (
    Computation,
    StudyIdentity,
    TrialFiles,
    Validation,
    arms_of,
    begun_computation,
    write_study,
)
from rebalance.trials.remedies.plain import Plain
from rebalance.trials.results import RESULT, Downstream
from rebalance.trials.runner import TrialBar, TrialRunner, check_best
from rebalance.trials.summary import Summary
from rebalance.trials.trial import Trial
from rebalance.version import __version__

logger = logging.getLogger(__name__)


def downstream(
    data: str | Path,
    synthetic: str | Path,
    *,
    results: str | Path | None = None,
    run: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    study: StudyOptions = StudyOptions(),
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Downstream:
    """Train a small classifier with and without synthetic images and compare; see `rebalance.api.downstream`."""
    start, place, synthetic = time.monotonic(), choose_device(device), Path(synthetic)
    manifest = manifest_of(synthetic, "synthetic")
    folder = results_folder(results, data, synthetic)
    loaded = _run_of(run, manifest, data, place)
    settings = load_recipe(recipe or (loaded.recipe if loaded else "gpu-128"), overrides)
    wanted, notes = _arms(study, loaded)
    check_best(wanted, [] if overwrite else arms_of(folder))
    share = manifest.validation if manifest else ValidationShare(settings.data.val_fraction, settings.seed)
    held_out = HeldOut(build_index(Path(data), progress=progress), share.fraction, share.seed)
    given = None if manifest else _given(synthetic, progress)
    identity = StudyIdentity(
        data=held_out.index.fingerprint,
        synthetic=given.index.fingerprint if given else manifest.fingerprint if manifest else "",
        square=study.square,
        device=device_kind(place),
        validation=Validation(share.fraction, share.seed, by_seed=held_out.changes),
        classifier=settings.downstream,
    )
    with opened_study(folder, overwrite), TrialBar(progress) as bar:
        computation = begun_computation(folder, identity)
        loader = MaterialLoader(held_out, synthetic, manifest, given, loaded, folder, study.square, place, progress)
        material = loader.material({arm.synthetic for arm in wanted})
        if computation is None:
            computation = _timed(settings, material, place)
            write_study(folder, identity, computation)
        files, loop = TrialFiles(folder, identity.key), computation.applied(loop_options(settings.downstream))
        runner = TrialRunner(files, files.read(), material, settings.downstream, loop, place, bar)
        summary, best = runner.run(wanted, study.seeds)
        result = _result(folder, summary, best, loop, start)
        kept = _keep_tuned(result, folder, loaded, overwrite)
        result = replace(result, notes=(*notes, *material.notes, *summary.short_of_seeds(), *kept))
        storage.write_json(folder / RESULT, {**result.to_json(), "results": ""})
    return result


def _run_of(
    run: str | Path | None, manifest: Manifest | None, data: str | Path, device: torch.device
) -> LoadedRun | None:
    """Load the run, which must be the one that made the output."""
    if run is None:
        return None
    loaded = load_run(RunDirectory(Path(run)), str(data), device)
    request = manifest.request if manifest else None
    if not isinstance(request, GenerationRequest) or request.run != loaded.fingerprint:
        version = manifest.version if manifest else __version__
        writer = "" if version == __version__ else f", which version {version} of rebalance wrote"
        raise InputError(
            f"`run` did not make `synthetic`{writer}",
            value=str(run),
            remedy="Name the run that this version generated it from; folders and outputs of filter have none",
        )
    return loaded


def _given(synthetic: Path, progress: bool) -> GivenImages:
    """Read which images are given.

    Raises:
        InputError: there are none.
    """
    if not storage.exists(synthetic):
        raise InputError("`synthetic` does not exist", value=str(synthetic), allowed="an output, or image folders")
    return given_images(synthetic, 0, progress)


def _arms(study: StudyOptions, run: LoadedRun | None) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Return the arms asked for, or the usual ones as far as they can be had, with a note on those that cannot."""
    multiples = [parse_multiple(str(multiple)) for multiple in study.multiples]
    wanted = parse_arms(DEFAULT if study.arms is None else study.arms, multiples)
    if run is None:
        impossible, reason = {UNFILTERED, CONTROL}, "arms with unfiltered or control images need `run`"
    elif not translates(run):
        impossible, reason = {CONTROL}, f"method {run.recipe.method} makes no control images: it takes no source image"
    else:
        return wanted, ()
    without = [arm.name for arm in wanted if arm.synthetic in impossible]
    if without and study.arms is not None:
        raise InputError(reason, value=without)
    notes = (f"{reason}; not trained: {', '.join(without)}",) if without else ()
    return tuple(arm for arm in wanted if arm.name not in without), notes


def _timed(recipe: Recipe, material: Material, device: torch.device) -> Computation:
    """Time how classifiers are computed fastest here."""
    options, real, plain = recipe.downstream, material.of_seed(0)[TRAIN], Arm(Plain.name, augment=True)
    mixture = Mixture.of_amounts(real, None, material.amounts(plain))
    trial = Trial(plain, recipe.seed, mixture, options, loop_options(options, recipe.training.threads), device)
    batch = trial.batch(np.random.default_rng(0), 0.0)
    loop, comparisons = choose(trial.classifier(), trial.loop, device, batch)
    logger.info("classifier: %s chosen (%s)", described(loop), "; ".join(map(str, comparisons)))
    return Computation.of(loop)


def _result(folder: Path, summary: Summary, best: Arm | None, loop: LoopOptions, start: float) -> Downstream:
    material, baseline = summary.material, summary.baseline()
    return Downstream(
        results=folder,
        classes=material.classes,
        poor=tuple(material.classes[label] for label in material.poor),
        seeds=summary.seeds,
        best=best.name if best else "",
        baseline=baseline.name if baseline else "",
        arms=tuple(summary.arm(arm, baseline) for arm in summary.trials),
        tuned=summary.tuned(best),
        classifier=described(loop),
        notes=(),
        seconds=round(time.monotonic() - start, 1),
    )


def _keep_tuned(result: Downstream, folder: Path, run: LoadedRun | None, overwrite: bool) -> tuple[str, ...]:
    """Write the tuned balance beside the study, and into the run, where `generate` finds it.

    A present balance stays where nothing can be chosen now, or where it rests on more seeds, as another study's in the
    run may; a note says so.
    """
    paths = [folder / TUNED, *([run.directory.tuned_path] if run else [])]
    if result.tuned is None:
        return tuple(f"{path} is what an earlier call chose" for path in paths if storage.is_file(path))
    notes = []
    for path in paths:
        present = None if overwrite else _present(path)
        if present and present.seeds > result.tuned.seeds:
            notes.append(
                f"{path} rests on {present.seeds} seeds and stays; "
                "with as many or `overwrite=True`, this choice takes its place"
            )
        else:
            write_tuned(path, result.tuned)
    return tuple(notes)


def _present(path: Path) -> Tuned | None:
    """Return the tuned balance of a file; None where there is none that can be read."""
    try:
        return read_tuned(path)
    except (DamagedError, InputError):
        return None
