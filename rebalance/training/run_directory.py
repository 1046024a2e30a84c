"""The run directory: where each thing of a run lies, and hashes by which damage is noticed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.config import Recipe, changed_keys, dump_recipe, load_recipe
from rebalance.errors import DamagedError, InputError, RefusedError
from rebalance.index import ImageIndex
from rebalance.modalities import Modalities
from rebalance.planning.balance import resolve_balance
from rebalance.planning.plans import Plan
from rebalance.planning.tuned import TUNED

logger = logging.getLogger(__name__)

MAX_NAMED_CHANGES = 8
_RECIPE_HEAD = "# Resolved by `rebalance fit`; nothing changes it after.\n"
_RESTORE = "Restore it from a copy, or start the run again with `overwrite=True`"


@dataclass(frozen=True)
class RunSeal:
    """Hashes by which damage to a run is noticed, `hashes.json`.

    Attributes:
        files: hash of each file, by its path within the run.
        modalities: fingerprint of the modalities, "" before they are found.
        stages: fingerprint of each stage that was begun, see `stage_fingerprint`; runs of version 0.1 have none.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    modalities: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunSeal:
        """Read the file.

        Raises:
            DamagedError: missing or damaged.
        """
        values = storage.read_sealed_json(path)
        return cls(values["files"], values["modalities"], values.get("stages", {}))

    def write(self, path: Path) -> None:
        """Write the file."""
        storage.write_sealed_json(path, asdict(self))


class RunDirectory:
    """Paths and small files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.hashes_path = self.path / "hashes.json"
        self.recipe_path = self.path / "recipe.yaml"
        self.plan_path = self.path / "plan.json"
        self.index_path = self.path / "index.parquet"
        self.modalities_path = self.path / "modalities.parquet"
        self.modalities_preview_path = self.path / "previews" / "modalities.png"
        self.calibration_path = self.path / "calibration"
        self.cache_path = self.path / "cache"
        self.tuned_path = self.path / TUNED

    def checkpoints(self, stage: str) -> Path:
        """Return the folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def logs(self, stage: str) -> Path:
        """Return the folder of a stage's TensorBoard files."""
        return self.path / "logs" / stage

    def previews(self, stage: str) -> Path:
        """Return the folder of a stage's preview grids."""
        return self.path / "previews" / stage

    @property
    def is_run(self) -> bool:
        """Return whether the folder has the files by which a run is told from an output."""
        return storage.is_file(self.recipe_path) or storage.is_file(self.hashes_path)

    @property
    def begun(self) -> bool:
        """Return whether everything that `fit` decides before step 0 has been written.

        Raises:
            DamagedError: work is there, but the hashes of what it was decided on are gone.
        """
        if storage.is_file(self.hashes_path):
            return True
        folders = storage.list_folders(self.path / "checkpoints")
        if any(storage.list_folders(folder, "step-*") for folder in folders):
            raise DamagedError(f"{self.hashes_path} is missing", remedy=_RESTORE)
        return False

    def begin(self, recipe: Recipe, index: ImageIndex, plan: Plan) -> None:
        """Write what has been decided; the hashes come last."""
        storage.write_text(self.recipe_path, _RECIPE_HEAD + dump_recipe(recipe))
        index.save(self.index_path)
        storage.write_json(self.plan_path, plan.to_json())
        self._seal_files(RunSeal(), self.recipe_path, self.index_path, self.plan_path).write(self.hashes_path)

    def begin_stage(self, name: str, fingerprint: str) -> None:
        """Remember on what a stage depends, before its first step.

        Raises:
            DamagedError: it was begun with something else.
        """
        seal = self._seal()
        begun = seal.stages.get(name, fingerprint)
        if begun != fingerprint:
            raise DamagedError(
                f"the stage {name} of {self.path} was begun with other data, options or version", remedy=_RESTORE
            )
        if name not in seal.stages:
            replace(seal, stages={**seal.stages, name: fingerprint}).write(self.hashes_path)

    def _seal_files(self, seal: RunSeal, *paths: Path) -> RunSeal:
        """Return a seal with the hashes of files as they are now."""
        hashes = {path.relative_to(self.path).as_posix(): storage.sha256_file(path) for path in paths}
        return replace(seal, files={**seal.files, **hashes})

    def _seal(self) -> RunSeal:
        """Return the hashes.

        Raises:
            InputError: not a run directory.
            DamagedError: the hashes are damaged.
        """
        if not self.begun:
            raise InputError("`run` is not a run directory", value=str(self.path), remedy="Run `rebalance fit` first")
        return RunSeal.read(self.hashes_path)

    def problems(self) -> list[storage.Problem]:
        """Compare every sealed file with its hash."""
        faults = ((name, self._fault(self.path / name)) for name in self._seal().files)
        return [storage.Problem(name, fault) for name, fault in faults if fault]

    def _fault(self, path: Path) -> str:
        """Return what is wrong with a sealed file, "" when nothing is."""
        expected = self._seal().files.get(path.relative_to(self.path).as_posix())
        if expected is None or not storage.is_file(path):
            return "missing"
        return "" if storage.sha256_file(path) == expected else "damaged: its hash is not the one written with it"

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return load_recipe(self._intact(self.recipe_path))

    def plan(self) -> Plan:
        """Read the plan."""
        return Plan.from_json(storage.read_json(self._intact(self.plan_path)))

    def index(self) -> ImageIndex:
        """Read the index."""
        return ImageIndex.read_from(self._intact(self.index_path))

    def has_modalities(self) -> bool:
        """Return whether modalities have been found; files that a kill left without a hash do not count."""
        return bool(self._seal().modalities)

    def lost_modalities(self) -> list[Path]:
        """Return those of the two files of modalities that are not as they were written, all before they are found."""
        paths = [self.modalities_path, self.modalities_preview_path]
        if not self.has_modalities():
            return paths
        faults = {path: self._fault(path) for path in paths}
        for path, fault in faults.items():
            if fault:
                logger.warning("%s is %s; it is made again", path, fault)
        return [path for path in paths if faults[path]]

    def modalities(self) -> Modalities:
        """Read the modalities."""
        return Modalities.read_from(self._intact(self.modalities_path))

    def save_modalities(self, modalities: Modalities, index: ImageIndex, preview: bytes) -> None:
        """Write modalities and their picture.

        Raises:
            DamagedError: they were lost and did not come out as those that training has begun with.
        """
        seal = self._seal()
        if seal.modalities not in ("", modalities.fingerprint):
            raise DamagedError(f"{self.modalities_path} was lost and cannot be made as it was", remedy=_RESTORE)
        storage.write_bytes(self.modalities_preview_path, preview)
        modalities.save(self.modalities_path, index)
        seal = self._seal_files(seal, self.modalities_path, self.modalities_preview_path)
        replace(seal, modalities=modalities.fingerprint).write(self.hashes_path)

    def _intact(self, path: Path) -> Path:
        """Return the path of a sealed file whose bytes are those that were written.

        Raises:
            DamagedError: missing or changed.
        """
        fault = self._fault(path)
        if fault:
            raise DamagedError(f"{path} is {fault}", remedy=_RESTORE)
        return path

    def drop_cache(self) -> None:
        """Delete the decoded images of a finished run."""
        storage.remove_folder(self.cache_path)

    def clear(self) -> None:
        """Delete the contents of a run directory.

        Raises:
            RefusedError: the folder holds something that `fit` did not write.
        """
        names = {"hashes.json", "recipe.yaml", "plan.json", "index.parquet", "modalities.parquet", "calibration",
                 "cache", "checkpoints", "logs", "previews", TUNED}  # fmt: skip
        present = [name for name in storage.list_names(self.path) if name != ".lock" and not name.endswith(".partial")]
        # The recipe is written first and removed last: without its first line or hashes, nothing here is of a run.
        headed = storage.is_file(self.recipe_path) and _RECIPE_HEAD.encode() in storage.read_bytes(self.recipe_path)
        ours = names if headed or _is_sealed(self.hashes_path) else set()
        foreign = [name for name in present if name not in ours]
        if foreign:
            raise RefusedError(
                f"{self.path} holds files that are not of a run: {', '.join(sorted(foreign)[:5])}",
                remedy="Choose another folder for `run`",
            )
        # The checkpoints go first: a run without them and without hashes counts as not begun.
        storage.remove_folder(self.path / "checkpoints")
        storage.remove_file(self.hashes_path)
        for name in present:
            item = self.path / name
            if storage.is_folder(item):
                storage.remove_folder(item)
            elif item != self.recipe_path:
                storage.remove_file(item)
        storage.remove_file(self.recipe_path)

    def check_same(
        self,
        recipe: Recipe,
        index: ImageIndex,
        balance: str | float | Mapping[str, int],
        max_multiple: float | None,
    ) -> None:
        """Check that a run was begun with this recipe, these amounts and this data.

        The classifier of a downstream study may differ, because no image depends on it.

        Raises:
            RefusedError: it was not; the message names what changed.
        """
        begun = self.recipe()
        requested = replace(_with_choices(recipe, begun), downstream=begun.downstream)
        changes = [f"recipe {change}" for change in changed_keys(begun.to_mapping(), requested.to_mapping())]
        plan = self.plan()
        if plan.max_multiple != max_multiple:
            changes.append(f"`max_multiple` {plan.max_multiple} -> {max_multiple}")
        changed = _changed_files(self.index(), index)
        if not changed:
            begun_counts = {target.name: target.n_synthetic for target in plan.targets}
            counts = resolve_balance(index.counts("train"), balance, max_multiple)
            if counts != begun_counts:
                changes.append(f"`balance`, images to make: {begun_counts} -> {counts}")
        changes += changed
        if changes:
            more = f" and {len(changes) - MAX_NAMED_CHANGES} more" if len(changes) > MAX_NAMED_CHANGES else ""
            raise RefusedError(
                f"{self.path} was begun with something else: {'; '.join(changes[:MAX_NAMED_CHANGES])}{more}",
                remedy="Give the same request to resume, choose another `run`, or start again with `overwrite=True`",
            )


def _is_sealed(path: Path) -> bool:
    try:
        return bool(storage.read_sealed_json(path))
    except DamagedError:
        return False


def _with_choices(requested: Recipe, begun: Recipe) -> Recipe:
    """Fill what the request leaves to the machine with the choices made when the run began."""
    training, encoder = requested.training, requested.modalities.encoder
    if training.precision == "auto":
        training = replace(training, precision=begun.training.precision)
    if training.memory_format == "auto":
        training = replace(training, memory_format=begun.training.memory_format)
    if training.threads == 0:
        training = replace(training, threads=begun.training.threads)
    if encoder.precision == "auto":
        encoder = replace(encoder, precision=begun.modalities.encoder.precision)
    if encoder.memory_format == "auto":
        encoder = replace(encoder, memory_format=begun.modalities.encoder.memory_format)
    return replace(requested, training=training, modalities=replace(requested.modalities, encoder=encoder))


def _changed_files(begun: ImageIndex, now: ImageIndex) -> list[str]:
    if begun.fingerprint == now.fingerprint:
        return []

    def rows(index: ImageIndex) -> dict[str, tuple[Any, ...]]:
        columns = [index.column(name) for name in ("class", "sublabel", "split", "hash", "status")]
        return {index.name(i): tuple(column[i] for column in columns) for i in range(index.table.num_rows)}

    before, after = rows(begun), rows(now)
    gone = [f"data file {name} is gone" for name in before if name not in after]
    new = [f"data file {name} is new" for name in after if name not in before]
    changed = [f"data file {name} has changed" for name in before if name in after and before[name] != after[name]]
    return (gone + changed + new) or ["the data set's classes"]
