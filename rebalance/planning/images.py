"""Which real images play which part when images of a target are made: a question of the plan, not of the method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance.index import ImageIndex
from rebalance.planning.plans import Plan


@dataclass(frozen=True)
class TargetImages:
    """The images that candidates of a target are made of.

    Attributes:
        sources: image ids of each group of sources; a candidate draws a group uniformly, then an image of it. Empty
            for a target without a rich class.
        references: image ids of the references, drawn uniformly.
    """

    sources: tuple[np.ndarray, ...]
    references: np.ndarray


def images_of_target(plan: Plan, index: ImageIndex, name: str) -> TargetImages:
    """Return the train images of the target's source classes as sources, its own as references."""
    target = plan.target(name)
    return TargetImages(
        tuple(index.rows("train", source.name) for source in target.sources), index.rows("train", target.name)
    )
