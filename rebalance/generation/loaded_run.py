"""A finished run with its models, ready to generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from rebalance import storage
from rebalance.config import Recipe
from rebalance.config.options import without_defaults
from rebalance.errors import InputError
from rebalance.generation.candidates import Candidate, CandidateStream
from rebalance.generation.provenance import REFERENCES, Provenance
from rebalance.index import ImageIndex
from rebalance.methods.base import LabelLaw, Method
from rebalance.modalities import Modalities
from rebalance.planning.images import images_of_target
from rebalance.planning.plans import Plan
from rebalance.storage import canonical_json, sha256_bytes
from rebalance.training.loading import load_method, target_labels
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import Unit, stages_of

_DATA_KEYS = ("size_px", "channels", "square")
"""Keys of the recipe's data section that change an image; the others only decide where images are kept or held out."""


@dataclass(frozen=True)
class Model:
    """A trained model with what generation needs beside it.

    Attributes:
        unit: which targets it makes.
        method: the method with generating weights.
        weights_sha256: hash of the weights' file.
        labels: translator classes of each of its targets; empty for a target left out of training.
        modalities: the modality id behind each translator class.
        laws: from which translator classes candidates draw, by target; empty where references tell them.
    """

    unit: Unit
    method: Method
    weights_sha256: str
    labels: Mapping[str, tuple[int, ...]]
    modalities: tuple[int, ...]
    laws: Mapping[str, LabelLaw]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to generate."""

    directory: RunDirectory
    recipe: Recipe
    plan: Plan
    index: ImageIndex
    modalities: Modalities
    models: tuple[Model, ...]

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each part of the run that changes a byte of its images; not of where it lies.

        Recipes are hashed without defaults, so that a key which a later release adds changes nothing.
        """
        recipe, plan = self.recipe, self.plan
        data = without_defaults(recipe.data)
        parts = {
            "data": self.index.fingerprint,
            "weights": [model.weights_sha256 for model in self.models],
            "method": [recipe.method, without_defaults(recipe.options)],
            "images": [{key: data[key] for key in _DATA_KEYS if key in data}, without_defaults(recipe.generation)],
            "plan": {target.name: [source.name for source in target.sources] for target in plan.targets},
            "modalities": self.modalities.fingerprint,
        }
        return {name: sha256_bytes(canonical_json(part).encode()) for name, part in parts.items()}

    def model_of(self, target: str) -> Model:
        """Return the model that makes a target."""
        return next(model for model in self.models if target in model.unit.targets)

    def candidate_stream(self, key: str) -> CandidateStream:
        """Return the stream of candidates of all targets, keyed by a text."""
        names = [target.name for target in self.plan.targets]
        return CandidateStream(
            key,
            self.models[0].method.inputs,
            {name: images_of_target(self.plan, self.index, name) for name in names},
            {name: law for model in self.models for name, law in model.laws.items()},
            self.recipe.generation.n_references,
        )

    def provenance(self, candidate: Candidate) -> Provenance:
        """Return what a candidate's image is made from."""
        images = (*(() if candidate.source is None else (candidate.source,)), *candidate.references)
        if not images:
            return Provenance("latent")
        return Provenance("images", tuple(self.index.name(image) for image in images))

    def source_text(self, candidate: Candidate) -> str:
        """Return the name of a candidate's source, "" without one."""
        return "" if candidate.source is None else self.index.name(candidate.source)

    def reference_text(self, candidate: Candidate) -> str:
        """Return the names of a candidate's references in one text, "" without any."""
        return REFERENCES.join(self.index.name(reference) for reference in candidate.references)

    def source_class(self, candidate: Candidate) -> str:
        """Return the class of a candidate's source; without one, the class behind its translator class."""
        if candidate.source is not None:
            return str(self.index.column("class")[candidate.source])
        return self.modalities.table[self._modality_of(candidate)].class_name

    def modality_number(self, candidate: Candidate) -> int:
        """Return the number within its class of the modality that `Inputs` name, -1 where there is none."""
        modality = self._modality_of(candidate)
        return self.modalities.table[modality].number if modality >= 0 else -1

    def _modality_of(self, candidate: Candidate) -> int:
        """Return the id of the modality that a candidate's record names, -1 where there is none."""
        model = self.model_of(candidate.slot.class_name)
        side = model.method.inputs.modality
        if side == "source" and candidate.source is not None:
            return self.modalities.of_image(candidate.source)
        if side == "reference" and candidate.references:
            return self.modalities.of_image(candidate.references[0])
        return model.modalities[candidate.label] if candidate.label >= 0 else -1


def load_run(run: RunDirectory, data: str | None, device: torch.device) -> LoadedRun:
    """Load a finished run.

    Args:
        run: the run directory.
        data: where the data set is now; None: where it was when the run was fitted.
        device: where to generate.

    Raises:
        InputError: not a run, or not finished.
        DamagedError: a file of the run is damaged.
    """
    recipe, plan, index = run.recipe(), run.plan(), run.index()
    if data is not None:
        index = index.moved_to(Path(data))
    if not storage.is_folder(index.root):
        raise InputError(f"the data set of this run is not at {index.root}", remedy="Name where it is now with `data`")
    if not run.has_modalities():
        raise InputError(f"the run {run.path} is not finished", remedy="Run the same `rebalance fit` command again")
    modalities, models = run.modalities(), []
    for stage in stages_of(plan, index, recipe):
        if stage.last:
            unit, labels = stage.unit, stage.unit.labels(modalities)
            method, digest = load_method(run, stage, modalities, recipe, device)
            of_targets = {name: target_labels(unit, name, modalities) for name in unit.targets}
            laws = {} if method.inputs.references else {name: method.label_law(of) for name, of in of_targets.items()}
            own = {name: tuple(of.own) for name, of in of_targets.items()}
            models.append(Model(unit, method, digest, own, labels, laws))
    return LoadedRun(run, recipe, plan, index, modalities, tuple(models))
