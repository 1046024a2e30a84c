"""Public functions that join stations and make nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rebalance.config import Recipe, load_recipe
from rebalance.devices import choose_device
from rebalance.features import make_extractor
from rebalance.index import Inspection, build_index, carve_validation, inspect_index
from rebalance.planning import Plan, make_plan
from rebalance.shards import Verification
from rebalance.shards import verify as verify_shards
from rebalance.training import RunDirectory, RunVerification, verify_run
from rebalance.training.estimate import with_estimate


def inspect(data: str | Path, *, progress: bool = False) -> Inspection:
    """Return what is in a data set: counts, sizes, bad files, copies across splits.

    Args:
        data: image folder, manifest (.csv, .tsv, .parquet) or WebDataset shards.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of these forms.
    """
    return inspect_index(build_index(Path(data), progress=progress))


def verify(path: str | Path, *, progress: bool = False) -> Verification | RunVerification:
    """Hold every file of a run or of an output against the hash that was written with it.

    Args:
        path: a run directory, or a folder made by `generate`.
        progress: show a progress bar on stderr.

    Raises:
        InputError: neither.
        DamagedError: a run's hashes themselves are damaged.
    """
    path = Path(path)
    if RunDirectory(path).recipe_path.exists() or RunDirectory(path).hashes_path.exists():
        return verify_run(path)
    return verify_shards(path, progress)


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
        balance: a strategy, a ratio, or final counts of classes, see `rebalance.planning.parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.
        overrides: `key=value` changes of the recipe.
        seed: replaces the recipe's.
        device: "auto", "cpu" or "cuda", for which the forecast is made.
        progress: show progress bars on stderr.

    Raises:
        InputError: wrong input; the message says the rule and the value.
    """
    loaded = load_recipe(recipe, overrides, seed)
    place = choose_device(device)
    index = build_index(Path(data), loaded.data.sublabel_column, progress)
    index = carve_validation(index, loaded.data.val_fraction, loaded.seed)
    made = make_plan(index, loaded, make_extractor(loaded.features, place), balance, max_multiple)
    return with_estimate(index, loaded, made, place)
