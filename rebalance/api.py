"""The public functions, in the order of use.

One name means one thing: `data` and `real` are data sets, `run` is a run directory, `out` is the folder to write,
`synthetic` and `images` are images that something has made. Implementations are imported on the first call, because
torch takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebalance.config import Recipe
from rebalance.config.requests import FeatureChoice, FilterChoice, OutputOptions, StudyOptions

if TYPE_CHECKING:
    from PIL import Image

    from rebalance.evaluation.figures import Evaluation
    from rebalance.index import Inspection
    from rebalance.planning.plans import Plan
    from rebalance.shards.from_images import FilterResult
    from rebalance.shards.from_run import GenerationResult
    from rebalance.shards.loading import ShardDataset
    from rebalance.shards.verification import Verification
    from rebalance.training.fitting import FitResult
    from rebalance.training.verification import RunVerification
    from rebalance.trials.results import Downstream

__all__ = ["downstream", "evaluate", "filter", "fit", "generate", "inspect", "load_shards", "plan", "verify"]


def inspect(data: str | Path, *, progress: bool = False) -> Inspection:
    """Return the contents of a data set: counts, sizes, bad files, copies across splits.

    Args:
        data: image folder, manifest (.csv, .tsv, .parquet) or WebDataset shards.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of these forms.
    """
    from rebalance.index import build_index, inspect_index

    return inspect_index(build_index(Path(data), progress=progress))


def plan(
    data: str | Path,
    recipe: str | Path | Recipe = "gpu-128",
    *,
    balance: str | float | Mapping[str, int] = "auto",
    max_multiple: float | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Plan:
    """Return what `fit` and `generate` would do, with a forecast of time and disk; nothing is trained.

    Args:
        data: image folder, manifest or shards.
        recipe: name, YAML file or a loaded recipe.
        balance: a strategy, a ratio, or final counts of classes, see `rebalance.planning.balance.parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.
        overrides: `key=value` changes of the recipe.
        seed: replaces the recipe's.
        device: "auto", "cpu" or "cuda", for which the forecast is made.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input; the message says the rule and the value.
    """
    from rebalance.config import load_recipe
    from rebalance.index import build_index, carve_validation
    from rebalance.measures.features import make_extractor
    from rebalance.planning.planner import make_plan
    from rebalance.runtime.devices import choose_device
    from rebalance.training.forecast import with_estimate

    loaded = load_recipe(recipe, overrides, seed)
    place = choose_device(device)
    index = build_index(Path(data), loaded.data.sublabel_column, progress)
    index = carve_validation(index, loaded.data.val_fraction, loaded.seed)
    planned = make_plan(index, loaded, make_extractor(loaded.features, place), balance, max_multiple)
    return with_estimate(index, loaded, planned, place)


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
    """Train a run on a data set; the same call again resumes.

    Several processes that `torchrun` started train one run together.

    Args:
        data: image folder, manifest or shards.
        run: run directory, made or resumed.
        recipe: name, YAML file or a loaded recipe.
        balance: a strategy, a ratio, or final counts of classes, see `rebalance.planning.balance.parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.
        overrides: `key=value` changes of the recipe.
        seed: replaces the recipe's.
        device: "auto", "cpu" or "cuda".
        overwrite: delete what `run` holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: `run` holds another run, or another process works on it.
        DivergedError: a loss was not finite.
        DamagedError: a file of the run is damaged.
        InterruptedRunError: a signal stopped the training, which has been saved.
    """
    from rebalance.training import fitting

    return fitting.fit(
        data,
        run,
        recipe,
        balance=balance,
        max_multiple=max_multiple,
        overrides=overrides,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )


def generate(
    run: str | Path,
    out: str | Path,
    *,
    balance: str | float | Mapping[str, int] | None = None,
    max_multiple: float | None = None,
    data: str | Path | None = None,
    output: OutputOptions = OutputOptions(),
    filtering: FilterChoice = FilterChoice(),
    workers: int = 1,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> GenerationResult:
    """Make the shards of a run; the same call again makes only what is missing.

    A shard that an earlier call has made is trusted when its marker and its moments are intact and its tar has the size
    that the marker says. Damage that keeps the size is found by `verify`, which names the tar; delete that file, and
    the same call makes it again. Processes that `torchrun` started share the shards among them.

    Args:
        run: a finished run directory.
        out: folder of the shards.
        balance: other amounts than the run's plan, for targets that were fitted; "tuned" is what `downstream` chose.
        max_multiple: cap on synthetic images of a class, times its real ones.
        data: where the data set is now, if it has moved since the fit.
        output: settings of the output.
        filtering: limits that images and classes must pass; checks and features are the recipe's unless named here.
        workers: processes; 0: as many as there are CPUs and work for, one on a GPU. It does not change a byte. More
            than one needs the caller's script to be importable (`if __name__ == "__main__"`).
        device: "auto", "cpu" or "cuda".
        overwrite: delete what `out` holds and start again.
        progress: show a progress bar on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: `out` holds shards of another request or version, or another process works on it.
        DamagedError: the run is damaged.
    """
    from rebalance.shards import from_run

    return from_run.generate(
        run,
        out,
        balance=balance,
        max_multiple=max_multiple,
        data=data,
        output=output,
        filtering=filtering,
        workers=workers,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )


def filter(
    images: str | Path,
    real: str | Path,
    out: str | Path,
    *,
    output: OutputOptions = OutputOptions(),
    filtering: FilterChoice = FilterChoice(),
    workers: int = 1,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> FilterResult:
    """Write the images that pass the filter to shards; the same call again makes only what is missing.

    What `generate` says of shards that an earlier call has made holds here too.

    Args:
        images: an image folder, manifest or shards, or a complete output of `generate` or `filter`.
        real: the real data set, with the same classes, whose train and val images the filter is calibrated on.
        out: folder of the shards.
        output: settings of the output; the file format is that of the images where they all have one.
        filtering: limits that images and classes must pass, and the features in which they are judged.
        workers: processes; 0: as many as there are CPUs and work for, one on a GPU. It does not change a byte. More
            than one needs the caller's script to be importable (`if __name__ == "__main__"`).
        device: "auto", "cpu" or "cuda".
        overwrite: delete what `out` holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: `out` holds shards of another request or version, or another process works on it.
    """
    from rebalance.shards import from_images

    return from_images.filter(
        images,
        real,
        out,
        output=output,
        filtering=filtering,
        workers=workers,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )


def verify(path: str | Path, *, progress: bool = False) -> Verification | RunVerification:
    """Check every file of a run or of an output against the hash that was written with it.

    Args:
        path: a run directory, or a folder made by `generate` or `filter`.
        progress: show a progress bar on stderr.

    Raises:
        InputError: neither.
        DamagedError: a run's hashes themselves are damaged.
    """
    from rebalance import storage
    from rebalance.shards import verification
    from rebalance.training import RunDirectory, verify_run

    directory = RunDirectory(Path(path))
    # Either file may be the one that is missing.
    if storage.exists(directory.recipe_path) or storage.exists(directory.hashes_path):
        return verify_run(directory.path)
    return verification.verify(path, progress=progress)


def evaluate(
    synthetic: str | Path,
    real: str | Path,
    *,
    split: str | None = None,
    features: FeatureChoice = FeatureChoice(),
    square: str | None = None,
    dimensions: int = 64,
    max_images: int = 5000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Compare synthetic images with held-out real ones; the result for an output of `generate` is kept in it.

    Args:
        synthetic: an output of `generate` or `filter`, or an image folder, manifest or shards.
        real: the real data set.
        split: "test", "val" or "train"; None: test, else val, which the run may have held out itself.
        features: the features in which images are compared.
        square: how real images are brought to the synthetic ones' square; None: the run's way, else "crop".
        dimensions: principal components in which the Fréchet distance is taken, at most.
        max_images: images of a class and side, at most; more are drawn from.
        seed: seed of every draw.
        device: "auto", "cpu" or "cuda".
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input, no held-out split, or no class on both sides.
    """
    from rebalance.evaluation import figures

    return figures.evaluate(
        synthetic,
        real,
        split=split,
        features=features,
        square=square,
        dimensions=dimensions,
        max_images=max_images,
        seed=seed,
        device=device,
        progress=progress,
    )


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
    """Train a small classifier with and without synthetic images and compare; the same call again resumes.

    Arms train on train for the same number of steps, all choices are made on val, and figures are those of test.

    Args:
        data: the real data set, with a test split; val is held out as the run did.
        synthetic: an output of `generate` or `filter`, or synthetic images in class folders.
        results: folder of the study; None: beside `synthetic`, with `-downstream` behind its name.
        run: the run that made the output: for arms with unfiltered or control images, and to keep the tuned balance in.
        recipe: where the section `downstream` is read; None: the run's recipe, else gpu-128.
        overrides: `key=value` changes of the recipe.
        study: arms, multiples and seeds. Arms that the folder has are reported as well, with all their seeds.
        device: "auto", "cpu" or "cuda".
        overwrite: delete what the folder of the study holds and start again.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input.
        RefusedError: the folder holds another study, or another process works on it.
        DivergedError: a loss was not finite.
    """
    from rebalance import storage
    from rebalance.reporting.charts import chart_png
    from rebalance.trials.results import CHART
    from rebalance.trials.study import downstream as run_study

    result = run_study(
        data,
        synthetic,
        results=results,
        run=run,
        recipe=recipe,
        overrides=overrides,
        study=study,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )
    storage.write_bytes(Path(result.results) / CHART, chart_png(result))
    return result


def load_shards(
    out: str | Path,
    transform: Callable[[Image.Image], Any] | None = None,
    *,
    shuffle: int = 0,
    seed: int = 0,
    even: bool = False,
    weights: str | Path | Mapping[str, float] | None = None,
) -> ShardDataset:
    """Return the samples of a complete output as a torch `IterableDataset` of (image, label).

    Under several DataLoader workers and distributed ranks every sample is yielded exactly once; each consumer takes
    every so-many-th sample, so ranks differ by at most one sample a worker.

    Args:
        out: folder made by `generate` or `filter`.
        transform: applied to the PIL image.
        shuffle: size of the shuffle buffer; shards are shuffled too. 0 keeps the order. Call `set_epoch` each epoch.
        seed: seed of the order.
        even: drop the last few samples so that all ranks and workers yield the same number.
        weights: share of a class's mass that its synthetic images should have, by class, or the `tuned.json` of
            `downstream`; samples are then (image, label, weight), to multiply losses with. The output must have real
            images (`include_real=True`), because a share is of both.

    Raises:
        InputError: not a complete output, or shares that cannot be had in it.
        DamagedError: its manifest is damaged.
    """
    from rebalance.shards import loading

    return loading.load_shards(out, transform, shuffle=shuffle, seed=seed, even=even, weights=weights)
