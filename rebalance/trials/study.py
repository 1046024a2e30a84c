"""`downstream`: does a classifier gain from the synthetic images, and from how many of them?"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from tqdm import tqdm

from rebalance import files
from rebalance.config import DownstreamOptions, Recipe, changed_keys, load_recipe
from rebalance.config.options import to_mapping
from rebalance.devices import choose_device
from rebalance.errors import DamagedError, InputError, RefusedError
from rebalance.generation import LoadedRun, load_run
from rebalance.index import build_index
from rebalance.shards.manifest import REQUEST, manifest_of
from rebalance.shards.request import device_kind
from rebalance.training import RunDirectory
from rebalance.training.loop import LoopOptions
from rebalance.training.precision import choose, described
from rebalance.trials.arms import BEST, CONTROL, DEFAULT, PLAIN, SMOTE, UNFILTERED, Arm, parse_arms, parse_multiple
from rebalance.trials.chart import chart_png
from rebalance.trials.classifier import Classifier, Trial, loop_options
from rebalance.trials.held_out import HeldOut
from rebalance.trials.material import TEST, TRAIN, VAL, Material, Sources
from rebalance.trials.pools import Mixture, Pool, with_smote
from rebalance.trials.results import Downstream, Summary, seeds_to_choose_over
from rebalance.trials.trial_files import TRIALS, Outcome, TrialFiles, arms_of

logger = logging.getLogger(__name__)

RESULT, STUDY, TUNED, CHART = "downstream.json", "study.json", "tuned.json", "chart.png"
MULTIPLES = ("1", "2", "5", "10", "full")
_FILLED_BYTES = 2**30
_TRIALS_VERSION = 2  # one more whenever trials are kept otherwise


def downstream(
    data: str | Path,
    out: str | Path,
    *,
    results: str | Path | None = None,
    run: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    arms: Sequence[str] | None = None,
    multiples: Sequence[str | float] = MULTIPLES,
    seeds: int = 3,
    square: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Downstream:
    """Train a small classifier with and without synthetic images and compare; the same call again resumes.

    Arms train on train for the same number of steps, all choices are made on val, and figures are those of test.

    Args:
        data: the real data set, with a test split; val is held out as the run did.
        out: an output of `generate` or `filter`, or synthetic images in class folders.
        results: folder of the study; by default beside OUT, with `-downstream` behind its name.
        run: the run that made the output: for arms with unfiltered or control images, and to keep the tuned balance in.
        recipe: where the section `downstream` is read; by default the run's recipe, else gpu-128.
        overrides: `key=value` changes of the recipe.
        arms: arms such as "oversampling+augment+filtered+x5+share=0.3", see `rebalance.trials.arms`; by default
            every cheap remedy, and filtered and unfiltered images on top of the best one. Those that the folder has
            are reported as well, with all their seeds.
        multiples: synthetic images of a class, times its real ones; "full" is all there are.
        seeds: how often every arm is trained, with other weights and draws.
        square: how real images become square; by default as the output's, else "crop".
        device: "auto", "cpu" or "cuda".
        overwrite: delete what the folder of the study holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: the folder holds another study, or another process works on it.
        DivergedError: a loss was not finite.
    """
    start, place, out = time.monotonic(), choose_device(device), Path(out)
    if seeds < 1:
        raise InputError("--seeds", value=seeds, allowed="1 or more")
    manifest = manifest_of(out)
    folder = Path(results) if results is not None else out.with_name(f"{out.name}-downstream")
    for what, read in (("DATA", Path(data)), ("OUT", out)):
        if read.is_dir() and folder.resolve().is_relative_to(read.resolve()):
            raise InputError(f"--results lies inside {what}, where it would be read as images", value=str(folder))
    loaded = _run_of(run, manifest, data, place)
    chosen = load_recipe(recipe or (loaded.recipe if loaded else "gpu-128"), overrides)
    wanted, notes = _arms(arms, [parse_multiple(str(multiple)) for multiple in multiples], loaded is not None)
    _check_best(wanted, [] if overwrite else arms_of(folder))
    index = build_index(Path(data), progress=progress)
    validation = manifest["validation"] if manifest else {"fraction": chosen.data.val_fraction, "seed": chosen.seed}
    held_out = HeldOut(index, **validation)
    synthetic = manifest.get("fingerprint") or build_index(out).fingerprint
    identity = {
        "data": index.fingerprint, "synthetic": synthetic, "square": square, "device": device_kind(place),
        "val": {**validation, "by_seed": held_out.changes}, "downstream": to_mapping(chosen.downstream),
        "libraries": {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
        "trials": _TRIALS_VERSION,
    }  # fmt: skip
    key = files.sha256_bytes(files.canonical_json(identity).encode())
    with _begun(folder, overwrite):
        kept = _kept_loop(folder / STUDY, identity, chosen.downstream)
        sources = Sources(held_out, out, manifest, loaded, folder, square, place, progress)
        material = sources.material({arm.synthetic for arm in wanted})
        loop = kept or _timed_loop(folder / STUDY, identity, chosen, material, place)
        trials = TrialFiles(folder, key)
        study = _Study(trials, trials.read(), material, chosen.downstream, loop, place)
        with _Progress(progress) as bar:
            summary, best = study.run(wanted, seeds, bar)
        notes = (*notes, *material.notes, *summary.short_of_seeds())
        result = _result(folder, summary, best, described(study.loop), notes, start)
        result = replace(result, notes=(*result.notes, *_keep_tuned(result, folder, loaded, overwrite)))
        files.write_json(folder / RESULT, {**result.to_json(), "results": ""})
        files.write_bytes(folder / CHART, chart_png(result))
    return result


def _run_of(
    run: str | Path | None, manifest: dict[str, Any], data: str | Path, device: torch.device
) -> LoadedRun | None:
    """Load the run, which must be the one that made the output."""
    if run is None:
        return None
    loaded = load_run(RunDirectory(Path(run)), str(data), device)
    if not manifest or manifest["request"].get("run") != loaded.fingerprint:
        raise InputError(
            "--run did not make OUT",
            value=str(run),
            remedy="Name the run that OUT was generated from; folders and outputs of filter have none",
        )
    return loaded


def _arms(
    texts: Sequence[str] | None, multiples: Sequence[float], with_run: bool
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Return the arms asked for, or the usual ones as far as they can be had, with a note on those that cannot."""
    wanted = parse_arms(DEFAULT if texts is None else texts, multiples)
    without = [arm.name for arm in wanted if arm.synthetic in (UNFILTERED, CONTROL) and not with_run]
    if without and texts is not None:
        raise InputError("arms with unfiltered or control images need --run", value=without)
    wanted = tuple(arm for arm in wanted if arm.name not in without)
    notes = (f"without --run, not trained: {', '.join(without)}",) if without else ()
    return wanted, notes


def _check_best(wanted: Sequence[Arm], there: Sequence[Arm]) -> None:
    """Check that there is a cheap arm for `BEST` to stand for."""
    if any(arm.remedy == BEST for arm in wanted) and not any(arm.cheap for arm in (*wanted, *there)):
        raise InputError("--arms: best stands for one of the arms without synthetic images", remedy="Name some")


@contextlib.contextmanager
def _begun(folder: Path, overwrite: bool) -> Iterator[None]:
    """Lock a study's folder, emptied if that is asked, and clear away what a kill left."""
    with files.locked(folder):
        if overwrite and ((folder / STUDY).is_file() or _only_unfiltered(folder)):
            for name in (TRIALS, UNFILTERED):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (RESULT, TUNED, CHART, STUDY):
                (folder / name).unlink(missing_ok=True)
        foreign = _shown(folder)
        if foreign and not (folder / STUDY).is_file() and not _only_unfiltered(folder):
            raise RefusedError(
                f"{folder} is not empty and holds no study: {', '.join(sorted(foreign)[:5])}",
                remedy="Choose another --results",
            )
        files.remove_partials(folder)
        yield


def _shown(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if not item.name.startswith(".")]


def _only_unfiltered(folder: Path) -> bool:
    """Whether a study was killed while it made its unfiltered images, before anything else."""
    return _shown(folder) == [UNFILTERED] and (folder / UNFILTERED / REQUEST).is_file()


def _kept_loop(path: Path, identity: dict[str, Any], options: DownstreamOptions) -> LoopOptions | None:
    """Return how the classifiers of a study that was begun are computed; None before it is.

    Raises:
        RefusedError: the folder holds another study.
    """
    if not path.is_file():
        return None
    begun = files.read_sealed_json(path)
    changes = changed_keys(begun["identity"], identity)
    if changes:
        raise RefusedError(
            f"{path.parent} holds another study: {'; '.join(changes[:8])}",
            remedy="Choose another --results, give the same request, or start again with --overwrite",
        )
    return replace(loop_options(options), **begun["loop"])


def _timed_loop(
    path: Path, identity: dict[str, Any], recipe: Recipe, material: Material, device: torch.device
) -> LoopOptions:
    """Time how classifiers are computed fastest here, and keep it with what the study is of."""
    options, real, plain = recipe.downstream, material.of_seed(0)[TRAIN], Arm(PLAIN)
    classifier = Classifier.build(options, real.pixels.shape[3], len(material.classes), True, recipe.seed)
    drawn = Mixture.of_amounts(real, None, material.amounts(plain))
    batch = Trial(plain, 0, drawn, options, loop_options(options), device).batch(np.random.default_rng(0), 0.0)
    loop, duels = choose(classifier, loop_options(options, recipe.training.threads), device, batch)
    logger.info("classifier: %s chosen (%s)", described(loop), "; ".join(map(str, duels)))
    kept = {"precision": loop.precision, "memory_format": loop.memory_format, "threads": loop.threads}
    files.write_sealed_json(path, {"identity": identity, "loop": kept})
    return loop


class _Progress:
    """One bar over the steps of all trials, with the time that is left."""

    def __init__(self, shown: bool) -> None:
        self.bar = tqdm(desc="trials", unit="step", disable=not shown, dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def expect(self, steps: int) -> None:
        """Count on so many steps from now on."""
        self.bar.total = self.bar.n + steps
        self.bar.refresh()

    def begin(self, name: str, seed: int) -> None:
        """Say which trial runs."""
        self.bar.set_postfix_str(f"{name} seed {seed}", refresh=False)

    def step(self) -> None:
        """Count a step."""
        self.bar.update()


@dataclass(frozen=True)
class _Study:
    """The trials of a study: those that are there, and those still to be run."""

    trials: TrialFiles
    outcomes: dict[Arm, dict[int, Outcome]]
    material: Material
    options: DownstreamOptions
    loop: LoopOptions
    device: torch.device
    pools: dict[int, dict[str, Pool]] = field(default_factory=dict)
    filled: dict[int, Pool] = field(default_factory=dict)

    def run(self, wanted: Sequence[Arm], seeds: int, bar: _Progress) -> tuple[Summary, Arm | None]:
        """Run the cheap arms, then the others, seed by seed; return what came of all trials and the best cheap arm.

        Trials of arms and seeds that are not asked for count as well.
        """
        if self.loop.threads:
            torch.set_num_threads(self.loop.threads)
        there = {arm: len(outcomes) for arm, outcomes in self._finished().items()}
        compared = seeds_to_choose_over(there | {arm: max(seeds, there.get(arm, 0)) for arm in wanted})
        bar.expect(self.options.steps * self._missing(wanted, seeds))
        self._train([arm for arm in wanted if arm.cheap], seeds, bar)
        best = Summary(self.material, self._finished(), compared).best_on_val()
        _check_best(wanted, [best] if best else [])
        resolved = list(dict.fromkeys(arm.resolved(best) if best else arm for arm in wanted))
        bar.expect(self.options.steps * self._missing(resolved, seeds))
        self._train(resolved, seeds, bar)
        return Summary(self.material, self._finished(resolved), compared), best

    def _finished(self, first: Sequence[Arm] = ()) -> dict[Arm, list[Outcome]]:
        """Return the trials of every arm in the order of the seeds, as far as none is missing; `first` come first."""
        found = {}
        for arm in dict.fromkeys([*first, *self.outcomes]):
            of_arm = self.outcomes.get(arm, {})
            found[arm] = [of_arm[seed] for seed in itertools.takewhile(of_arm.__contains__, itertools.count())]
        return {arm: outcomes for arm, outcomes in found.items() if outcomes}

    def _missing(self, wanted: Sequence[Arm], seeds: int) -> int:
        """Trials still to be run, as far as can be known before the best cheap arm is."""
        return sum(seed not in self.outcomes.get(arm, {}) for arm in wanted for seed in range(seeds))

    def _train(self, arms: Sequence[Arm], seeds: int, bar: _Progress) -> None:
        """Run the trials that are missing, seed by seed, so that all arms are known by one seed first."""
        for seed, arm in itertools.product(range(seeds), arms):
            if seed not in self.outcomes.get(arm, {}):
                bar.begin(arm.name, seed)
                trial = Trial(arm, seed, self._mixture(arm, seed), self.options, self.loop, self.device)
                found = trial.run(self._pools(seed)[VAL], self._pools(seed)[TEST], bar.step)
                outcome = Outcome(found, self.material.amounts(arm))
                self.trials.write(arm, seed, outcome)
                self.outcomes.setdefault(arm, {})[seed] = outcome

    def _mixture(self, arm: Arm, seed: int) -> Mixture:
        """Decide what an arm draws."""
        pools = self._pools(seed)
        real = self._filled(seed) if arm.remedy == SMOTE else pools[TRAIN]
        synthetic = pools[arm.synthetic] if arm.synthetic else None
        return Mixture.of_amounts(real, synthetic, self.material.amounts(arm, pools))

    def _pools(self, seed: int) -> dict[str, Pool]:
        if seed not in self.pools:
            self.pools[seed] = self.material.of_seed(seed)
        return self.pools[seed]

    def _filled(self, seed: int) -> Pool:
        """Return the train images with SMOTE's up to the largest class, of which each arm takes what it needs.

        They are made once a seed and kept, unless those of all seeds take too much memory.
        """
        if seed not in self.filled:
            if sum(pool.pixels.nbytes for pool in self.filled.values()) > _FILLED_BYTES:
                self.filled.clear()
            self.filled[seed] = with_smote(self._pools(seed)[TRAIN], seed)
        return self.filled[seed]


def _result(
    folder: Path, summary: Summary, best: Arm | None, chosen: str, notes: tuple[str, ...], start: float
) -> Downstream:
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
        chosen=chosen,
        notes=notes,
        seconds=round(time.monotonic() - start, 1),
    )


def _keep_tuned(result: Downstream, folder: Path, run: LoadedRun | None, overwrite: bool) -> tuple[str, ...]:
    """Write the tuned balance beside the study, and into the run, where `generate --balance tuned` finds it.

    What is there stays where nothing can be chosen now, or where it rests on more seeds, as another study's in the run
    may; a note says so.
    """
    places = [folder / TUNED, *([run.directory.tuned_path] if run else [])]
    if result.tuned is None:
        return tuple(f"{path} is what an earlier call chose" for path in places if path.is_file())
    values, notes = result.to_json()["tuned"], []
    for path in places:
        seeds = 0 if overwrite else _seeds_of(path)
        if seeds > values["seeds"]:
            notes.append(
                f"{path} rests on {seeds} seeds and stays; with as many or --overwrite, this choice takes its place"
            )
        else:
            files.write_sealed_json(path, values)
    return tuple(notes)


def _seeds_of(path: Path) -> int:
    """Return how many seeds a tuned balance rests on, 0 where there is none or it is damaged."""
    try:
        return files.read_sealed_json(path).get("seeds", 0)
    except DamagedError:
        return 0
