"""What is looked at during training: a grid of translations, and whether translations depend on their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rebalance import images
from rebalance.index import ImageIndex
from rebalance.methods import Method
from rebalance.planning import TargetPlan
from rebalance.training.data import step_rng
from rebalance.training.logs import Observation

PROBES = 16
_PROBE_STREAM = 3
_SHOWN = 8


@dataclass(frozen=True)
class Probe:
    """Fixed images of one target that are translated at every look.

    Attributes:
        target: the target.
        sources: (16, C, H, W) in [-1, 1], of the target's sources.
        references: (16, C, H, W) in [-1, 1], of the target.
        reference_labels: (16,) int64, their translator classes.
    """

    target: str
    sources: torch.Tensor
    references: torch.Tensor
    reference_labels: torch.Tensor


def draw_probe(
    target: TargetPlan,
    index: ImageIndex,
    labels_of: Callable[[np.ndarray], Sequence[int]],
    load: Callable[[np.ndarray], torch.Tensor],
    seed: int,
) -> Probe:
    """Draw the fixed images on which a target is observed.

    Args:
        target: the target.
        index: the data set.
        labels_of: maps image ids (n,) to their translator classes.
        load: maps image ids (n,) to images (n, C, H, W) in [-1, 1].
        seed: the recipe's.
    """
    rng = step_rng(seed, _PROBE_STREAM, target.label)
    of_sources = np.concatenate([index.rows("train", source.name) for source in target.sources])
    sources = rng.choice(of_sources, PROBES, replace=len(of_sources) < PROBES)
    references = np.resize(rng.permutation(index.rows("train", target.name)), PROBES)
    return Probe(target.name, load(sources), load(references), torch.tensor(labels_of(references)))


@dataclass(frozen=True)
class SourceDependence:
    """How much translations follow their source, against how much they follow their reference.

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


def variance_share(translations: torch.Tensor, references: torch.Tensor) -> float:
    """Return the variance of all translations over that of real images: near 0, the generator makes one image only.

    Args:
        translations: (sources, references, C, H, W) in [-1, 1].
        references: (n, C, H, W) in [-1, 1], real images of the target.
    """
    of_translations = float(translations.flatten(0, 1).var(dim=0, unbiased=False).mean())
    return of_translations / max(float(references.var(dim=0, unbiased=False).mean()), 1e-12)


@torch.inference_mode()
def translate_all(method: Method, probe: Probe, device: torch.device) -> torch.Tensor:
    """Translate every source with every reference: (sources, references, C, H, W) on the CPU."""
    codes = method.reference_codes(probe.references.to(device), probe.reference_labels.to(device))
    rows = []
    for source in probe.sources.to(device):
        repeated = source.expand(len(codes), *source.shape)
        rows.append(method.synthesize(repeated, codes).float().cpu())
    return torch.stack(rows)


@dataclass(frozen=True)
class TranslationObserver:
    """Observes a method on its targets' probes."""

    method: Method
    probes: tuple[Probe, ...]
    device: torch.device

    def __call__(self, averaged: Mapping[str, nn.Module]) -> Observation:
        """Translate the probes with the averaged networks; return source dependence and the grid."""
        method = self.method.with_networks(averaged)
        scalars: dict[str, float] = {}
        rows: list[list[np.ndarray]] = []
        for probe in self.probes:
            translations = translate_all(method, probe, self.device)
            measured = source_dependence(translations)
            scalars[f"source_dependence/{probe.target}"] = measured.ratio
            scalars[f"variance_over_sources/{probe.target}"] = measured.over_sources
            scalars[f"variance_over_references/{probe.target}"] = measured.over_references
            scalars[f"variance_share/{probe.target}"] = variance_share(translations, probe.references)
            rows.extend(_grid_rows(probe, translations))
        return Observation(scalars, images.grid(rows, min_side_px=32))


def _grid_rows(probe: Probe, translations: torch.Tensor) -> list[list[np.ndarray]]:
    """Sources in columns, references in rows, translations where they meet."""
    sources = list(images.to_pixels(probe.sources[:_SHOWN]))
    references = images.to_pixels(probe.references[:_SHOWN])
    rows = [[np.full_like(sources[0], 255), *sources]]
    for number, reference in enumerate(references):
        rows.append([reference, *images.to_pixels(translations[:_SHOWN, number])])
    return rows
