"""Requests: what decides every byte of an output, its fingerprint, and the file that an output is begun with."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from rebalance import imaging, storage
from rebalance.config import FilteringOptions, GenerationOptions
from rebalance.config.options import build, changed_keys, flatten
from rebalance.config.requests import OutputOptions
from rebalance.errors import RefusedError
from rebalance.filtering import ClassCalibration, Criteria
from rebalance.imaging.views import View
from rebalance.measures.features import FeatureExtractor
from rebalance.shards.names import REQUEST
from rebalance.shards.versions import SCHEMA, schema_of, version_fields, written_by


def plain_values(value: Any, with_defaults: bool) -> Any:
    """Return dataclasses, mappings and sequences as plain values that JSON can hold.

    Args:
        value: what to convert.
        with_defaults: keep the fields of dataclasses that have their default, and values of mappings that are None.
            Without them, a field that a later release adds changes nothing as long as nobody sets it.
    """
    if dataclasses.is_dataclass(value):
        named = {
            f.name: getattr(value, f.name) for f in dataclasses.fields(value) if with_defaults or _is_set(f, value)
        }
        return {name: plain_values(item, with_defaults) for name, item in named.items()}
    if isinstance(value, Mapping):
        return {key: plain_values(v, with_defaults) for key, v in value.items() if with_defaults or v is not None}
    return [plain_values(item, with_defaults) for item in value] if isinstance(value, (list, tuple)) else value


def _is_set(declared: dataclasses.Field[Any], of: Any) -> bool:
    """Return True unless the field has its default."""
    value = getattr(of, declared.name)
    if declared.default is not dataclasses.MISSING:
        return bool(value != declared.default)
    return declared.default_factory is dataclasses.MISSING or bool(value != declared.default_factory())


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """How the images of an output are cut into shards, encoded and computed.

    Attributes:
        shard_size: images of a shard.
        file_format: "jpg", "png" or "webp".
        quality: 1 to 100; 0 for png.
        seed: seed of all draws.
        device: see `device_kind`.
        libraries: versions that floating-point results and encoded bytes depend on.
    """

    shard_size: int = OutputOptions.shard_size
    file_format: str = OutputOptions.file_format
    quality: int = OutputOptions.quality
    seed: int = OutputOptions.seed
    device: str
    libraries: Mapping[str, str]

    @classmethod
    def of(cls, options: OutputOptions, device: torch.device) -> OutputSettings:
        """Return the settings that a caller asks for, on this machine."""
        return cls(
            shard_size=options.shard_size,
            file_format=options.file_format,
            quality=options.quality if options.file_format != "png" else 0,
            seed=options.seed,
            device=device_kind(device),
            libraries={
                "torch": torch.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
                "encoder": imaging.encoder_version(options.file_format),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How many images of which classes there are, and what each of them must pass.

    Attributes:
        counts: images of each class that is not withheld, in label order: wanted ones, or those to be filtered.
        withheld: withheld classes and why.
        calibration: SHA-256 of the calibration, "" without one.
        criteria: what images and classes must pass, as plain values.
        features: name and version of the features in which images are judged, "" where they are not.
    """

    counts: Mapping[str, int]
    withheld: Mapping[str, str] = field(default_factory=dict)
    calibration: str = ""
    criteria: Mapping[str, Any] = field(default_factory=dict)
    features: str = ""

    @classmethod
    def of(
        cls,
        counts: Mapping[str, int],
        calibrations: Mapping[str, ClassCalibration],
        criteria: Criteria,
        extractor: FeatureExtractor | None,
    ) -> Selection:
        """Return what a caller asks for; withheld classes lose their images."""
        withheld = {name: c.reason for name, c in calibrations.items() if c.withheld}
        stored = {name: c.to_json() for name, c in calibrations.items()}
        return cls(
            counts={name: n for name, n in counts.items() if name not in withheld},
            withheld=withheld,
            calibration=storage.sha256_bytes(storage.canonical_json(stored).encode()) if stored else "",
            criteria=criteria.to_json(),
            features=f"{extractor.name} {extractor.version}".strip() if extractor else "",
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that changes a byte of an output, whatever its images come from.

    Attributes:
        settings: how its images are cut into shards, encoded and computed.
        selection: which images there are, and what they must pass.
    """

    settings: OutputSettings
    selection: Selection

    @property
    def counts(self) -> Mapping[str, int]:
        """Images of each class that is not withheld."""
        return self.selection.counts

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain values, settings and selection side by side with its own."""
        return self._values(with_defaults=True)

    def _values(self, with_defaults: bool) -> dict[str, Any]:
        values = plain_values(self, with_defaults)
        return {**values.pop("selection"), **values.pop("settings"), **values}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the request without what has its default."""
        return storage.sha256_bytes(storage.canonical_json(self._values(with_defaults=False)).encode())

    def changes_since(self, earlier: Mapping[str, Any], without: Collection[str] = ()) -> list[str]:
        """Return `key: old -> new` for everything that differs from an earlier request.

        A key that the earlier one does not have, because its release did not know it, has its default there.

        Args:
            earlier: the earlier request, as plain values.
            without: keys that are not compared.
        """
        every, not_default = self.to_json(), self._values(with_defaults=False)
        old, new, set_keys = (
            flatten({key: value for key, value in values.items() if key not in without})
            for values in (earlier, every, not_default)
        )
        return changed_keys(old, {key: value for key, value in new.items() if key in old or key in set_keys})


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Request):
    """A request to `generate`.

    Attributes:
        run: fingerprint of the run.
        include_real: whether the real train images come along.
        generation: the recipe's generation section, the number of threads among it.
    """

    run: Mapping[str, str]
    include_real: bool = False
    generation: GenerationOptions


@dataclass(frozen=True)
class GivenIdentity:
    """What tells given images from others.

    Attributes:
        fingerprint: hash of all of them.
        usable: how many can be used.
        bad: files that cannot, by reason.
        output: fingerprint of the output that they are, "" where they are none.
    """

    fingerprint: str
    usable: int
    bad: Mapping[str, int] = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class FilterRequest(Request):
    """A request to `filter`.

    Attributes:
        images: which images are filtered.
        original: whether the images' own bytes are kept.
        real: hash of the real data set with its splits.
        view: shape and encoding in which all images are compared.
        filtering: how classes are calibrated.
        threads: CPU threads of a process.
    """

    images: GivenIdentity
    original: bool
    real: str
    view: View
    filtering: FilteringOptions
    threads: int


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Read a request, also one of version 0.1.

    Raises:
        KeyError, TypeError, InputError: a later version wrote it.
    """
    selection = _known(Selection, values)
    if "gates" in values:  # their name in version 0.1
        selection["criteria"] = values["gates"]
    parts: dict[str, Any] = {
        "settings": OutputSettings(**_known(OutputSettings, values)),
        "selection": Selection(**selection),
    }
    if "run" in values:
        own = _known(GenerationRequest, values)
        own["generation"] = build(GenerationOptions, _known(GenerationOptions, values["generation"]))
        return GenerationRequest(**{**own, **parts})
    own, view = _known(FilterRequest, values), values["view"]
    own["images"] = GivenIdentity(**_known(GivenIdentity, values["images"]))
    own["view"] = View(view["size_px"], view["square"], tuple(view["encoding"]) if view["encoding"] else None)
    own["filtering"] = build(FilteringOptions, _known(FilteringOptions, values["filtering"]))
    return FilterRequest(**{**own, **parts})


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that are fields of a dataclass."""
    return {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}


@dataclass(frozen=True)
class StoredRequest:
    """The file that an output is begun with.

    Attributes:
        schema: version of its layout.
        version: version of this package that wrote it.
        fingerprint: of the request.
        values: the request as plain values, as its version wrote it.
    """

    schema: int
    version: str
    fingerprint: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, out: Path) -> StoredRequest:
        """Read the request that `out` was begun with.

        Raises:
            DamagedError: missing or damaged.
        """
        content = storage.read_sealed_json(out / REQUEST)
        return cls(schema_of(content), written_by(content), content["fingerprint"], content["request"])

    def refuse_other_version(self, out: Path) -> None:
        """Refuse to go on with an output of another layout.

        Raises:
            RefusedError: the message says which version began it.
        """
        if self.schema != SCHEMA:
            raise RefusedError(
                f"{out} was begun by version {self.version} of this package, whose outputs this version cannot go on "
                "with",
                remedy="Complete it with that version, choose another `out`, or start again with `overwrite=True`",
            )


def write_request(out: Path, request: Request) -> None:
    """Write the file that an output is begun with."""
    content = {**version_fields(), "fingerprint": request.fingerprint, "request": request.to_json()}
    storage.write_sealed_json(out / REQUEST, content)


def device_kind(device: torch.device) -> str:
    """Return the device properties that affect rounding."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
