"""Samples of `generate`: an image with what the run says of its making."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance import imaging
from rebalance.filtering import Scores
from rebalance.generation.loaded_run import LoadedRun
from rebalance.generation.synthesizer import Made
from rebalance.shards.contents import Sample
from rebalance.shards.records import REAL_METHOD, SampleRecord
from rebalance.shards.request import GenerationRequest


@dataclass(frozen=True)
class SampleMaker:
    """Turns pixels into samples of one request."""

    run: LoadedRun
    request: GenerationRequest

    def of_candidate(self, made: Made, scores: Scores) -> Sample:
        """Return the sample of an accepted image."""
        candidate = made.candidate
        provenance = self.run.provenance(candidate)
        n_sources = 0 if candidate.source is None else 1
        record = SampleRecord(
            class_name=candidate.slot.class_name,
            label=self.run.index.label(candidate.slot.class_name),
            synthetic=True,
            method=self.run.recipe.method,
            run=self.request.fingerprint,
            origin=provenance.origin,
            source="".join(provenance.images[:n_sources]),
            references=provenance.images[n_sources:],
            source_class=self.run.source_class(candidate),
            modality=self.run.modality_number(candidate),
            seed=self.request.settings.seed,
            candidate=candidate.number,
            scores=scores.to_json(),
            width=made.pixels.shape[1],
            height=made.pixels.shape[0],
        )
        return self._encoded(candidate.slot.ordinal, made.pixels, record)

    def of_real(self, image_id: int, ordinal: int, pixels: np.ndarray) -> Sample:
        """Return the sample of a real train image, pixels (H, W, C) uint8."""
        class_name = str(self.run.index.column("class")[image_id])
        record = SampleRecord(
            class_name=class_name,
            label=self.run.index.label(class_name),
            synthetic=False,
            method=REAL_METHOD,
            run=self.request.fingerprint,
            origin="file",
            source=self.run.index.name(image_id),
            references=(),
            source_class=class_name,
            modality=self._modality_of(image_id),
            seed=self.request.settings.seed,
            candidate=-1,
            scores=Scores().to_json(),
            width=pixels.shape[1],
            height=pixels.shape[0],
        )
        return self._encoded(ordinal, pixels, record)

    def _modality_of(self, image_id: int) -> int:
        """Return the number of a real image's modality within its class, -1 for one outside training."""
        modality = self.run.modalities.of_image(image_id)
        return self.run.modalities.table[modality].number if modality >= 0 else -1

    def _encoded(self, ordinal: int, pixels: np.ndarray, record: SampleRecord) -> Sample:
        settings = self.request.settings
        image = imaging.encode(pixels, settings.file_format, settings.quality)
        return Sample(ordinal, settings.file_format, image, record)
