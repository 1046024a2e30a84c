"""Observations during training: a grid of images, and how far translations depend on their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from rebalance import imaging
from rebalance.learning.image_store import step_rng
from rebalance.learning.logs import Observation
from rebalance.methods.base import Conditions, LabelLaw, Method
from rebalance.planning.images import TargetImages

PROBES = 16
SOURCE_DEPENDENCE, VARIANCE_SHARE = "source_dependence", "variance_share"
"""Scalars of a target are called `KIND/TARGET`."""

_PROBE_STREAM = 3
_SHOWN = 8


@dataclass(frozen=True)
class Probe:
    """Fixed inputs of one target: images are made of each of 16 conditions, with each of 16 sources if there are any.

    Attributes:
        target: the target.
        sources: (16, C, H, W) in [-1, 1], of the target's sources; None for a method that takes none.
        conditions: 16 references of the target, or 16 latents with translator classes.
        real: (16, C, H, W) in [-1, 1], real images of the target.
    """

    target: str
    sources: torch.Tensor | None
    conditions: Conditions
    real: torch.Tensor


class LoadImages(Protocol):
    """Maps image ids (n,) to images (n, C, H, W) in [-1, 1]."""

    def __call__(self, image_ids: np.ndarray) -> torch.Tensor:
        """Return the images."""


class LabelsOf(Protocol):
    """Maps image ids (n,) to their translator classes."""

    def __call__(self, image_ids: np.ndarray) -> Sequence[int]:
        """Return the labels."""


@dataclass(frozen=True)
class ProbeDraw:
    """Draws the fixed images and latents on which a target is observed.

    Attributes:
        method: the method.
        seed: the recipe's.
        load: loads images.
        labels_of: tells their translator classes.
    """

    method: Method
    seed: int
    load: LoadImages
    labels_of: LabelsOf

    def draw(self, target: str, number: int, images: TargetImages, law: LabelLaw | None) -> Probe:
        """Draw the probe of a target.

        Args:
            target: the target.
            number: its label, which keys the draw.
            images: the images that play its sources and references.
            law: from which translator classes candidates draw; None where references tell them.
        """
        rng, inputs = step_rng(self.seed, _PROBE_STREAM, number), self.method.inputs
        sources = None
        if inputs.source:
            of_sources = np.concatenate(images.sources)
            sources = self.load(rng.choice(of_sources, PROBES, replace=len(of_sources) < PROBES))
        references = np.resize(rng.permutation(images.references), PROBES)
        real = self.load(references)
        if inputs.references or law is None:
            labels = torch.tensor(self.labels_of(references))
            return Probe(target, sources, Conditions(labels, references=real), real)
        drawn = rng.choice(law.labels, PROBES, p=law.probabilities)
        latents = torch.from_numpy(rng.standard_normal((PROBES, inputs.latent_size), np.float32))
        return Probe(target, sources, Conditions(torch.from_numpy(drawn), latents=latents), real)


@dataclass(frozen=True)
class SourceDependence:
    """Degree to which translations follow their source, compared with their reference or latent.

    Attributes:
        ratio: `over_sources` / `over_references`.
        over_sources: mean over references of the variance over sources.
        over_references: mean over sources of the variance over references.
    """

    ratio: float
    over_sources: float
    over_references: float


def source_dependence(translations: torch.Tensor) -> SourceDependence:
    """Measure source dependence in pixels.

    Args:
        translations: (sources, references, C, H, W) in [-1, 1].
    """
    over_sources = float(translations.var(dim=0, unbiased=False).mean())
    over_references = float(translations.var(dim=1, unbiased=False).mean())
    return SourceDependence(over_sources / max(over_references, 1e-12), over_sources, over_references)


def variance_share(images: torch.Tensor, real: torch.Tensor) -> float:
    """Return the variance of made images over that of real ones: near 0, the generator makes one image only.

    Args:
        images: (sources, references, C, H, W) in [-1, 1].
        real: (n, C, H, W) in [-1, 1], real images of the target.
    """
    of_images = float(images.flatten(0, 1).var(dim=0, unbiased=False).mean())
    return of_images / max(float(real.var(dim=0, unbiased=False).mean()), 1e-12)


@torch.inference_mode()
def make_all(method: Method, probe: Probe, device: torch.device) -> torch.Tensor:
    """Make an image of every source with every condition: (sources or 1, conditions, C, H, W) on the CPU."""

    def placed(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    given = probe.conditions
    codes = method.codes(Conditions(given.labels.to(device), placed(given.references), placed(given.latents)))
    if probe.sources is None:
        return method.make(None, codes).float().cpu()[None]
    rows = []
    for source in probe.sources.to(device):
        repeated = source.expand(len(codes), *source.shape)
        rows.append(method.make(repeated, codes).float().cpu())
    return torch.stack(rows)


@dataclass(frozen=True)
class MethodObserver:
    """Observes a method on its targets' probes."""

    method: Method
    probes: tuple[Probe, ...]
    device: torch.device

    def __call__(self, averaged: Mapping[str, nn.Module]) -> Observation:
        """Make images of the probes with the averaged networks; return their figures and the grid."""
        method = self.method.with_networks(averaged)
        scalars: dict[str, float] = {}
        rows: list[list[np.ndarray]] = []
        for probe in self.probes:
            images = make_all(method, probe, self.device)
            if probe.sources is not None:
                measured = source_dependence(images)
                scalars[f"{SOURCE_DEPENDENCE}/{probe.target}"] = measured.ratio
                scalars[f"variance_over_sources/{probe.target}"] = measured.over_sources
                scalars[f"variance_over_references/{probe.target}"] = measured.over_references
            scalars[f"{VARIANCE_SHARE}/{probe.target}"] = variance_share(images, probe.real)
            rows.extend(_grid_rows(probe, images))
        return Observation(scalars, imaging.grid(rows, min_side_px=32))


def _grid_rows(probe: Probe, images: torch.Tensor) -> list[list[np.ndarray]]:
    """Return sources in columns, references in rows, and what is made of both where they meet.

    Without references the first column is blank; without sources there are one row of real images and one of made ones.
    """
    if probe.sources is None:
        return [list(imaging.to_pixels(row[:_SHOWN])) for row in (probe.real, images[0])]
    sources = list(imaging.to_pixels(probe.sources[:_SHOWN]))
    blank = np.full_like(sources[0], 255)
    shown = probe.conditions.references
    references = [blank] * _SHOWN if shown is None else list(imaging.to_pixels(shown[:_SHOWN]))
    rows = [[blank, *sources]]
    for number, reference in enumerate(references):
        rows.append([reference, *imaging.to_pixels(images[:_SHOWN, number])])
    return rows
