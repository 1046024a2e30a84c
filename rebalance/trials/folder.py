"""The folder of a study: locked while it is worked on, emptied on request, never anybody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rebalance import storage
from rebalance.errors import InputError, RefusedError
from rebalance.planning.tuned import TUNED
from rebalance.shards.names import REQUEST
from rebalance.trials.arms import UNFILTERED
from rebalance.trials.records import STUDY, TRIALS
from rebalance.trials.results import CHART, RESULT


def results_folder(results: str | Path | None, data: str | Path, synthetic: Path) -> Path:
    """Return the folder of a study: the one asked for, else one beside the synthetic images.

    Raises:
        InputError: it lies in a folder whose images are read.
    """
    folder = Path(results) if results is not None else synthetic.with_name(f"{synthetic.name}-downstream")
    for parameter, images in (("data", Path(data)), ("synthetic", synthetic)):
        if storage.is_folder(images) and storage.is_inside(folder, images):
            raise InputError(
                f"`results` lies inside `{parameter}`, where it would be read as images", value=str(folder)
            )
    return folder


@contextlib.contextmanager
def opened_study(folder: Path, overwrite: bool) -> Iterator[None]:
    """Lock a study's folder, emptied if that is asked, and clear away what a kill left.

    Raises:
        RefusedError: it holds something else, or another process works on it.
    """
    with storage.locked(folder):
        if overwrite and (storage.is_file(folder / STUDY) or _only_unfiltered(folder)):
            for name in (TRIALS, UNFILTERED):
                storage.remove_folder(folder / name)
            for name in (RESULT, TUNED, CHART, STUDY):
                storage.remove_file(folder / name)
        foreign = _visible_names(folder)
        if foreign and not storage.is_file(folder / STUDY) and not _only_unfiltered(folder):
            raise RefusedError(
                f"{folder} is not empty and holds no study: {', '.join(foreign[:5])}",
                remedy="Choose another `results`",
            )
        storage.remove_partials(folder)
        yield


def _visible_names(folder: Path) -> list[str]:
    return sorted(name for name in storage.list_names(folder) if not name.startswith("."))


def _only_unfiltered(folder: Path) -> bool:
    """Return True for a study that was killed while it made its unfiltered images, before anything else."""
    return _visible_names(folder) == [UNFILTERED] and storage.is_file(folder / UNFILTERED / REQUEST)
