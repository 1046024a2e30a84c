"""Station 2, the plan: which classes get how many images, from which sources, split into how many modalities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import yaml

from rebalance.config import DataOptions, Recipe
from rebalance.errors import InputError
from rebalance.features import FeatureExtractor
from rebalance.index import ImageIndex

STRATEGIES = ("auto", "minority", "not minority", "not majority", "all")
"""Names that `--balance` takes, with imbalanced-learn's meanings for over-sampling."""


@dataclass(frozen=True)
class SourcePlan:
    """A class that serves a target.

    Attributes:
        name: the class.
        n_real: its usable train images.
        distance: Euclidean distance of the two classes' mean features.
    """

    name: str
    n_real: int
    distance: float


@dataclass(frozen=True)
class TargetPlan:
    """A class that is to receive synthetic images.

    Attributes:
        name: the class.
        label: its label.
        n_real: usable train images.
        n_final: images in the end.
        sources: its sources, the nearest first.
    """

    name: str
    label: int
    n_real: int
    n_final: int
    sources: tuple[SourcePlan, ...]

    @property
    def n_synthetic(self) -> int:
        """Synthetic images to make."""
        return self.n_final - self.n_real


@dataclass(frozen=True)
class Estimate:
    """A rough forecast for this machine.

    Attributes:
        fit_seconds: training, all models.
        generate_seconds: making every synthetic image once, without rejects.
        run_bytes: size of the run directory.
        shards_bytes: size of the shards.
    """

    fit_seconds: float
    generate_seconds: float
    run_bytes: int
    shards_bytes: int


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    Attributes:
        balance: the request as given.
        max_multiple: cap on synthetic images, times the real ones; None without.
        targets: in label order.
        modalities: number of modalities of every class that takes part in training.
        estimate: time and disk; None before it is made.
    """

    balance: str
    max_multiple: float | None
    targets: tuple[TargetPlan, ...]
    modalities: dict[str, int]
    estimate: Estimate | None = None

    @property
    def n_synthetic(self) -> int:
        """Synthetic images of all targets."""
        return sum(target.n_synthetic for target in self.targets)

    def n_shards(self, shard_size: int) -> int:
        """Shards of at most `shard_size` images; the targets are interleaved in them."""
        return math.ceil(self.n_synthetic / shard_size)

    def classes(self) -> tuple[str, ...]:
        """Classes that take part in training: all targets and sources."""
        return tuple(self.modalities)

    def target(self, name: str) -> TargetPlan:
        """Return the plan of one target."""
        return next(target for target in self.targets if target.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        values = asdict(self)
        for target, plain in zip(self.targets, values["targets"], strict=True):
            plain["n_synthetic"] = target.n_synthetic
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from what `to_json` returned."""
        targets = tuple(
            TargetPlan(
                name=target["name"],
                label=target["label"],
                n_real=target["n_real"],
                n_final=target["n_final"],
                sources=tuple(SourcePlan(**source) for source in target["sources"]),
            )
            for target in values["targets"]
        )
        estimate = Estimate(**values["estimate"]) if values["estimate"] else None
        return cls(values["balance"], values["max_multiple"], targets, dict(values["modalities"]), estimate)


def parse_balance(balance: str | float | Mapping[str, int]) -> str | float | dict[str, int]:
    """Read a `--balance` request: a strategy, a float, or a mapping as inline JSON or in a file.

    Raises:
        InputError: none of these.
    """
    if isinstance(balance, Mapping):
        return _final_counts(balance)
    if isinstance(balance, (int, float)) or balance in STRATEGIES:
        return balance
    if balance.lstrip().startswith("{"):
        try:
            return _final_counts(json.loads(balance))
        except ValueError as error:
            raise InputError("--balance is not valid JSON", value=balance, remedy=str(error)) from error
    try:
        return float(balance)
    except ValueError:
        return _balance_file(Path(balance))


def _balance_file(path: Path) -> dict[str, int]:
    allowed = f"{', '.join(STRATEGIES)}, a number in (0, 1], inline JSON or a .json/.yaml file of class: final count"
    if path.suffix not in (".json", ".yaml", ".yml") or not path.is_file():
        raise InputError("--balance is unknown", value=str(path), allowed=allowed)
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read --balance {path}: {error}") from error
    return _final_counts(values)


def _final_counts(values: Any) -> dict[str, int]:
    if not isinstance(values, Mapping) or not values:
        raise InputError("--balance mapping must name at least one class", value=values, allowed="class: final count")
    for name, count in values.items():
        if type(count) is not int or count < 0:
            raise InputError(f"--balance: final count of {name!r}", value=count, allowed="a whole number")
    return {str(name): count for name, count in values.items()}


def resolve_balance(
    counts: Mapping[str, int], balance: str | float | Mapping[str, int], max_multiple: float | None = None
) -> dict[str, int]:
    """Resolve a request into synthetic images per class, in label order, classes with none left out.

    Args:
        counts: usable train images of every class, in label order.
        balance: as `parse_balance` takes it.
        max_multiple: cap on synthetic images of a class, times its real ones.

    Raises:
        InputError: fewer than two classes, unknown class, final count below the present one, ratio already met, a
            target without any image, or nothing to do.
    """
    request = parse_balance(balance)
    filled = {name: count for name, count in counts.items() if count}
    if len(filled) < 2:
        raise InputError(
            "rebalancing needs at least two classes with usable train images", value=dict(counts), allowed="two or more"
        )
    finals = _wanted(counts, request)
    empty = [name for name, final in finals.items() if final > counts[name] == 0]
    if empty:
        raise InputError(
            f"no usable train image in class {', '.join(map(repr, empty))}",
            remedy="Add images, remove the folder, or name other targets with --balance",
        )
    wanted = {name: final - counts[name] for name, final in finals.items() if final > counts[name]}
    if not wanted:
        raise InputError("nothing to do: every class has the images that --balance asks for", value=balance)
    return wanted if max_multiple is None else cap(wanted, counts, max_multiple)


def cap(wanted: Mapping[str, int], real: Mapping[str, int], max_multiple: float) -> dict[str, int]:
    """Cap synthetic images of each class at a multiple of its real ones, rounded down; classes left with none go.

    Raises:
        InputError: the multiple is not above 0, or leaves nothing.
    """
    if not 0 < max_multiple < math.inf:
        raise InputError("--max-multiple", value=max_multiple, allowed="a number above 0")
    # The small addition undoes binary rounding, so that 0.29 of 100 is 29.
    capped = {name: min(n, math.floor(max_multiple * real[name] + 1e-9)) for name, n in wanted.items()}
    capped = {name: n for name, n in capped.items() if n}
    if not capped:
        raise InputError("nothing to do: --max-multiple leaves no image to make", value=max_multiple)
    return capped


def _wanted(counts: Mapping[str, int], request: str | float | dict[str, int]) -> dict[str, int]:
    largest = max(counts.values())
    smallest = min(count for count in counts.values() if count)
    if isinstance(request, dict):
        for name, final in request.items():
            if name not in counts:
                raise InputError(f"--balance names an unknown class {name!r}", allowed=", ".join(map(repr, counts)))
            if final < counts[name]:
                raise InputError(
                    f"--balance: final count of {name!r} is below its {counts[name]} real images", value=final
                )
        return {name: request[name] for name in counts if name in request}
    if isinstance(request, str):
        chosen = {
            "minority": lambda count: count == smallest,
            "not minority": lambda count: count != smallest,
            "not majority": lambda count: count != largest,
            "auto": lambda count: count != largest,
            "all": lambda count: True,
        }[request]
        return {name: largest for name, count in counts.items() if chosen(count)}
    if not 0 < request <= 1:
        raise InputError("--balance as a number", value=request, allowed="above 0, at most 1")
    final = math.ceil(request * largest - 1e-9)
    if smallest >= final:
        raise InputError(
            f"--balance: the ratio is already met, the smallest class has {smallest / largest:.3f} of the largest",
            value=request,
            allowed="a larger ratio, at most 1",
        )
    return {name: final for name, count in counts.items() if count < final}


def class_means(index: ImageIndex, recipe: Recipe, extractor: FeatureExtractor) -> dict[str, np.ndarray]:
    """Return each class's mean feature vector over a seeded draw of its train images; empty classes are left out."""
    means = {}
    for label, name in enumerate(index.classes):
        rows = index.rows("train", name)
        if len(rows):
            chosen = np.random.default_rng((recipe.seed, label)).permutation(rows)[: recipe.plan.feature_images]
            means[name] = real_features(index, np.sort(chosen), recipe.data, extractor).mean(0)
    return means


def real_features(index: ImageIndex, rows: np.ndarray, options: DataOptions, extractor: FeatureExtractor) -> np.ndarray:
    """Return features (n, d) of real images as the model's squares, from the user's cache where they are known."""
    view = f"{options.size_px} {options.channels} {options.square} {PIL.__version__}"
    keys = [f"{content} {view}" for content in index.column("hash")[rows]]
    return extractor.extract_known(keys, (index.square(int(row), options) for row in rows))


def make_plan(
    index: ImageIndex,
    recipe: Recipe,
    extractor: FeatureExtractor,
    balance: str | float | Mapping[str, int] = "auto",
    max_multiple: float | None = None,
) -> Plan:
    """Decide targets, amounts, sources and numbers of modalities.

    Args:
        index: the data set, with a val split.
        recipe: the recipe.
        extractor: features for the distances between classes.
        balance: request as for `parse_balance`.
        max_multiple: cap on synthetic images of a class, times its real ones.

    Raises:
        InputError: as `resolve_balance`, or a target has no class that is rich enough to be its source.
    """
    counts = index.counts("train")
    wanted = resolve_balance(counts, balance, max_multiple)
    rich = {name: _rich_classes(counts, name, recipe) for name in wanted}
    means = class_means(index, recipe, extractor)
    targets = tuple(
        TargetPlan(
            name, index.label(name), counts[name], counts[name] + n, _sources(counts, means, rich[name], name, recipe)
        )
        for name, n in wanted.items()
    )
    text = balance if isinstance(balance, str) else json.dumps(balance)
    return Plan(text, max_multiple, targets, _modality_counts(index, targets, recipe))


def _rich_classes(counts: Mapping[str, int], target: str, recipe: Recipe) -> list[str]:
    least = recipe.plan.source_ratio * counts[target]
    rich = [name for name, count in counts.items() if name != target and count >= least]
    if not rich:
        raise InputError(
            f"class {target!r} with {counts[target]} images has no source",
            allowed=f"another class with at least {math.ceil(least)} usable train images",
            remedy="Name poorer targets with --balance, or lower plan.source_ratio",
        )
    return rich


def _sources(
    counts: Mapping[str, int], means: Mapping[str, np.ndarray], rich: list[str], target: str, recipe: Recipe
) -> tuple[SourcePlan, ...]:
    sources = [
        SourcePlan(name, counts[name], round(float(np.linalg.norm(means[name] - means[target])), 4)) for name in rich
    ]
    sources.sort(key=lambda source: source.distance)
    ratio = recipe.plan.max_distance_ratio
    if ratio is not None:
        sources = [source for source in sources if source.distance <= ratio * sources[0].distance]
    return tuple(sources[: recipe.plan.n_sources])


def _modality_counts(index: ImageIndex, targets: tuple[TargetPlan, ...], recipe: Recipe) -> dict[str, int]:
    """Modalities of each class that takes part: sources and, in the balanced setting, targets are split."""
    options = recipe.modalities
    served: dict[str, int] = {}
    for target in targets:
        for source in target.sources:
            served[source.name] = min(served.get(source.name, target.n_real), target.n_real)
    smallest = min(target.n_real for target in targets)
    numbers = {}
    for name, count in index.counts("train").items():
        if name in served:
            numbers[name] = modality_count(count, served[name], recipe, options.k)
        elif any(target.name == name for target in targets):
            numbers[name] = modality_count(count, smallest, recipe, options.k_target) if options.split_targets else 1
        if options.by == "column" and (name in served or (name in numbers and options.split_targets)):
            numbers[name] = len(np.unique(index.column("sublabel")[index.rows("train", name)].astype(str)))
    return numbers


def modality_count(n_images: int, smallest_target: int, recipe: Recipe, fixed: int | None = None) -> int:
    """k of a class: min(k_max, floor(n / b) + 1, floor(n / min_images)), at least 1; a recipe may fix it.

    Args:
        n_images: train images of the class.
        smallest_target: b, train images of the smallest target that it serves.
        recipe: the recipe.
        fixed: the recipe's own number, capped by the number of images.
    """
    options = recipe.modalities
    if options.by == "none":
        return 1
    if fixed is not None:
        return max(1, min(fixed, n_images))
    return max(1, min(options.k_max, n_images // smallest_target + 1, n_images // options.min_images))
