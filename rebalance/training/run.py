"""The run directory: where each thing of a run lies, and which models it holds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.config import Recipe, changed_keys, dump_recipe, load_recipe
from rebalance.config.options import to_mapping
from rebalance.errors import DamagedError, InputError, RefusedError
from rebalance.index import ImageIndex
from rebalance.modalities import Modalities
from rebalance.planning import Plan, resolve_balance

logger = logging.getLogger(__name__)

MAX_NAMED_CHANGES = 8
_RECIPE_HEAD = "# Resolved by `rebalance fit`; nothing changes it after.\n"
_NOTHING_SEALED: Mapping[str, Any] = {"files": {}, "modalities": ""}
_RESTORE = "Restore it from a copy, or start the run again with --overwrite"


@dataclass(frozen=True)
class Unit:
    """One model of a run.

    Attributes:
        name: folder name below checkpoints, logs and previews.
        targets: targets that it makes.
        classes: data-set classes that it is trained on.
        groups: sets of classes that translate into each other: each target with its sources.
    """

    name: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    groups: tuple[frozenset[str], ...]

    def labels(self, modalities: Modalities) -> tuple[int, ...]:
        """Return the modality id behind each translator class of this model."""
        return tuple(i for i, modality in enumerate(modalities.table) if modality.class_name in self.classes)


def units_of(plan: Plan, index: ImageIndex, recipe: Recipe) -> tuple[Unit, ...]:
    """Return the models of a run: one for all targets ("joint"), or one a target ("per-class")."""
    groups = {
        target.name: frozenset((target.name, *(source.name for source in target.sources))) for target in plan.targets
    }
    if recipe.training.models == "joint":
        wanted = [("joint", tuple(groups), tuple(groups.values()))]
    else:
        wanted = [(f"class-{index.label(name):05d}", (name,), (group,)) for name, group in groups.items()]
    units = []
    for name, targets, unit_groups in wanted:
        classes = frozenset().union(*unit_groups)
        if not recipe.balagan.target_in_training:
            classes -= {target for target in targets if not _is_source(plan, target, targets)}
        ordered = tuple(class_name for class_name in index.classes if class_name in classes)
        units.append(Unit(name, targets, ordered, unit_groups))
    return tuple(units)


def _is_source(plan: Plan, name: str, targets: tuple[str, ...]) -> bool:
    return any(source.name == name for target in targets for source in plan.target(target).sources)


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
        self.tuned_path = self.path / "tuned.json"

    def checkpoints(self, unit: str) -> Path:
        """Return the folder of a model's checkpoints."""
        return self.path / "checkpoints" / unit

    def logs(self, unit: str) -> Path:
        """Return the folder of a model's TensorBoard files."""
        return self.path / "logs" / unit

    def previews(self, unit: str) -> Path:
        """Return the folder of a model's preview grids."""
        return self.path / "previews" / unit

    @property
    def begun(self) -> bool:
        """Whether everything that `fit` decides before step 0 has been written.

        Raises:
            DamagedError: work is there, but the hashes of what it was decided on are gone.
        """
        if self.hashes_path.is_file():
            return True
        if any((self.path / "checkpoints").glob("*/step-*")):
            raise DamagedError(f"{self.hashes_path} is missing", remedy=_RESTORE)
        return False

    def begin(self, recipe: Recipe, index: ImageIndex, plan: Plan) -> None:
        """Write what has been decided; the hashes come last."""
        files.write_text(self.recipe_path, _RECIPE_HEAD + dump_recipe(recipe))
        index.save(self.index_path)
        files.write_json(self.plan_path, plan.to_json())
        self.seal(self.recipe_path, self.index_path, self.plan_path)

    def seal(self, *paths: Path, modalities: str = "") -> None:
        """Remember the hashes of files as they are now, so that later damage is noticed.

        Args:
            paths: the files.
            modalities: fingerprint of the modalities, once they are found.
        """
        known = files.read_sealed_json(self.hashes_path) if self.hashes_path.is_file() else _NOTHING_SEALED
        added = {path.relative_to(self.path).as_posix(): files.sha256_file(path) for path in paths}
        value = {"files": {**known["files"], **added}, "modalities": modalities or known["modalities"]}
        files.write_sealed_json(self.hashes_path, value)

    def _sealed(self) -> dict[str, Any]:
        """Return the hashes of sealed files by their paths within the run, and the modalities' fingerprint.

        Raises:
            InputError: not a run directory.
            DamagedError: the hashes are damaged.
        """
        if not self.begun:
            raise InputError("RUN is not a run directory", value=str(self.path), remedy="Run `rebalance fit` first")
        return files.read_sealed_json(self.hashes_path)

    def problems(self) -> list[files.Problem]:
        """Hold every sealed file against its hash."""
        found = ((name, self._fault(self.path / name)) for name in self._sealed()["files"])
        return [files.Problem(name, fault) for name, fault in found if fault]

    def _fault(self, path: Path) -> str:
        """Return what is wrong with a sealed file, "" when nothing is."""
        expected = self._sealed()["files"].get(path.relative_to(self.path).as_posix())
        if expected is None or not path.is_file():
            return "missing"
        return "" if files.sha256_file(path) == expected else "damaged: its hash is not the one written with it"

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return load_recipe(self._intact(self.recipe_path))

    def plan(self) -> Plan:
        """Read the plan."""
        return Plan.from_json(files.read_json(self._intact(self.plan_path)))

    def index(self) -> ImageIndex:
        """Read the index."""
        return ImageIndex.read_from(self._intact(self.index_path))

    def has_modalities(self) -> bool:
        """Whether modalities have been found; files that a kill left without a hash do not count."""
        return bool(self._sealed()["modalities"])

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
        if self._sealed()["modalities"] not in ("", modalities.fingerprint):
            raise DamagedError(f"{self.modalities_path} was lost and cannot be made as it was", remedy=_RESTORE)
        files.write_bytes(self.modalities_preview_path, preview)
        modalities.save(self.modalities_path, index)
        self.seal(self.modalities_path, self.modalities_preview_path, modalities=modalities.fingerprint)

    def _intact(self, path: Path) -> Path:
        """Return the path of a sealed file whose bytes are those that were written.

        Raises:
            DamagedError: missing or changed.
        """
        fault = self._fault(path)
        if fault:
            raise DamagedError(f"{path} is {fault}", remedy=_RESTORE)
        return path

    def clear(self) -> None:
        """Delete the contents of a run directory.

        Raises:
            RefusedError: the folder holds something that `fit` did not write.
        """
        known = {"hashes.json", "recipe.yaml", "plan.json", "index.parquet", "modalities.parquet", "calibration",
                 "cache", "checkpoints", "logs", "previews", "tuned.json"}  # fmt: skip
        present = list(self.path.iterdir()) if self.path.is_dir() else []
        present = [item for item in present if item.name != ".lock" and not item.name.endswith(".partial")]
        # The recipe is written first and removed last: without its first line or hashes, nothing here is of a run.
        headed = self.recipe_path.is_file() and _RECIPE_HEAD.encode() in self.recipe_path.read_bytes()
        ours = known if headed or _is_sealed(self.hashes_path) else set()
        foreign = [item.name for item in present if item.name not in ours]
        if foreign:
            raise RefusedError(
                f"{self.path} holds files that are not of a run: {', '.join(sorted(foreign)[:5])}",
                remedy="Choose another --run folder",
            )
        # The checkpoints go first: a run without them and without hashes counts as not begun.
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        self.hashes_path.unlink(missing_ok=True)
        for item in present:
            if item != self.recipe_path and item.exists():
                shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
        self.recipe_path.unlink(missing_ok=True)

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
        changes = [f"recipe {change}" for change in changed_keys(to_mapping(begun), to_mapping(requested))]
        plan = self.plan()
        if plan.max_multiple != max_multiple:
            changes.append(f"--max-multiple {plan.max_multiple} -> {max_multiple}")
        changed = _changed_files(self.index(), index)
        if not changed:
            begun_counts = {target.name: target.n_synthetic for target in plan.targets}
            counts = resolve_balance(index.counts("train"), balance, max_multiple)
            if counts != begun_counts:
                changes.append(f"--balance, images to make: {begun_counts} -> {counts}")
        changes += changed
        if changes:
            more = f" and {len(changes) - MAX_NAMED_CHANGES} more" if len(changes) > MAX_NAMED_CHANGES else ""
            raise RefusedError(
                f"{self.path} was begun with something else: {'; '.join(changes[:MAX_NAMED_CHANGES])}{more}",
                remedy="Give the same request to resume, choose another --run, or start again with --overwrite",
            )


def _is_sealed(path: Path) -> bool:
    try:
        return bool(files.read_sealed_json(path))
    except DamagedError:
        return False


def _with_choices(requested: Recipe, begun: Recipe) -> Recipe:
    """Fill what the request leaves to the machine with what was chosen when the run began."""
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
