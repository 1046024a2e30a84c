"""Candidates: what each try at a slot is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rebalance.config.method import Inputs
from rebalance.generation.slots import Slot, keyed_rng
from rebalance.methods.base import LabelLaw
from rebalance.planning.images import TargetImages

NO_LABEL = -1
"""Label of a candidate whose references tell its translator class."""


@dataclass(frozen=True)
class Candidate:
    """One try at a slot.

    Attributes:
        slot: what it is for.
        number: 0 for the first try.
        source: id of the source image; None for a method that takes none.
        references: ids of the reference images, whose codes are averaged; () for a method that takes none.
        label: translator class, `NO_LABEL` where references tell it.
        latent: (latent_size,) float32; None for a method that takes none.
    """

    slot: Slot
    number: int
    source: int | None
    references: tuple[int, ...]
    label: int = NO_LABEL
    latent: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class CandidateStream:
    """Draws candidates: a pure function of the key, the slot and the candidate's number.

    Attributes:
        key: the generation fingerprint, or the calibration's.
        inputs: what the method's candidates are made of.
        images: the images that play sources and references, by target.
        laws: from which translator classes candidates draw, by target; empty where references tell them.
        n_references: references of a candidate.
    """

    key: str
    inputs: Inputs
    images: Mapping[str, TargetImages]
    laws: Mapping[str, LabelLaw]
    n_references: int

    def draw(self, slot: Slot, number: int) -> Candidate:
        """Draw a group of sources uniformly, then an image of it, then distinct references where there are enough.

        Translator class and latent come from a generator of their own, so that they change none of these draws.
        """
        rng = keyed_rng(self.key, slot.class_name, slot.ordinal, number)
        images = self.images[slot.class_name]
        source, references = None, ()
        if self.inputs.source:
            group = images.sources[rng.integers(len(images.sources))]
            source = int(group[rng.integers(len(group))])
        if self.inputs.references:
            pool = images.references
            drawn = rng.choice(pool, self.n_references, replace=len(pool) < self.n_references)
            references = tuple(drawn.tolist())
        if slot.class_name not in self.laws:
            return Candidate(slot, number, source, references)
        rng = keyed_rng(self.key, slot.class_name, slot.ordinal, number, "latent")
        law = self.laws[slot.class_name]
        label = int(rng.choice(law.labels, p=law.probabilities))
        latent = rng.standard_normal(self.inputs.latent_size, np.float32) if self.inputs.latent_size else None
        return Candidate(slot, number, source, references, label, latent)
