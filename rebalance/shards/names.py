"""Names of the files of an output."""

from __future__ import annotations

import re
from dataclasses import dataclass

SYNTHETIC, REAL = "synthetic", "real"
"""Kinds of shards."""

MANIFEST = "manifest.json"
REQUEST = "generation.json"
WIDS_INDEX, TIMM_INFO, CARD = "index.json", "_info.json", "README.md"

CALIBRATION = "calibration"
"""Folder of the calibration in an output that belongs to no run."""

_SHARD = re.compile(rf"({SYNTHETIC}|{REAL})-(\d{{6,}})")


@dataclass(frozen=True)
class ShardName:
    """Kind and number of a shard, and its file names."""

    kind: str
    number: int

    @property
    def stem(self) -> str:
        """What its file names begin with."""
        return f"{self.kind}-{self.number:06d}"

    @property
    def tar(self) -> str:
        """Name of the tar file."""
        return f"{self.stem}.tar"

    @property
    def marker(self) -> str:
        """Name of the done-marker."""
        return f"{self.stem}.json"

    @property
    def moments(self) -> str:
        """Name of the file with the moments of its images."""
        return f"{self.stem}.moments.safetensors"

    @classmethod
    def of_file(cls, name: str) -> ShardName | None:
        """Return the shard that a tar file or a marker belongs to, None for any other file."""
        stem, _, ending = name.partition(".")
        match = _SHARD.fullmatch(stem)
        return cls(match[1], int(match[2])) if match and ending in ("tar", "json") else None
