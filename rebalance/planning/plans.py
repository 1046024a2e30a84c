"""The plan: targets, amounts, sources, numbers of modalities, a forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
    """Targets, amounts, sources and numbers of modalities.

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
