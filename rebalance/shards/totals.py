"""What the markers of shards add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rebalance.shards.names import REAL, ShardName
from rebalance.shards.records import Marker


@dataclass(frozen=True)
class Totals:
    """Images of shards, by class.

    Attributes:
        synthetic: synthetic images.
        real: real images.
        rejects: rejected images by reason.
        shortfall: slots that no candidate could fill.
    """

    synthetic: Mapping[str, int]
    real: Mapping[str, int]
    rejects: dict[str, dict[str, int]]
    shortfall: dict[str, int]

    @classmethod
    def of(cls, markers: Mapping[ShardName, Marker]) -> Totals:
        """Add up the markers of shards."""
        synthetic, real, shortfall = Counter[str](), Counter[str](), Counter[str]()
        rejects: dict[str, Counter[str]] = {}
        for name, marker in markers.items():
            (real if name.kind == REAL else synthetic).update(marker.counts)
            shortfall.update(marker.shortfall)
            for class_name, reasons in marker.rejects.items():
                rejects.setdefault(class_name, Counter()).update(reasons)
        by_reason = {name: dict(reasons) for name, reasons in sorted(rejects.items())}
        return cls(synthetic, real, by_reason, dict(shortfall))
