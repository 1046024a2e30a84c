"""Schema versions of the files of an output, and who wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebalance.errors import DamagedError
from rebalance.version import __version__

SCHEMA = 2
"""Version of the layout of the files of an output; those of version 0.1 of this package name none."""

_KEYS = ("schema", "version")


def version_fields() -> dict[str, Any]:
    """Return what every file says of who wrote it."""
    return {"schema": SCHEMA, "version": __version__}


def schema_of(values: Mapping[str, Any]) -> int:
    """Return the schema version of a file; 1 for one of version 0.1."""
    schema = values.get("schema", 1)
    return schema if isinstance(schema, int) else SCHEMA + 1


def written_by(values: Mapping[str, Any]) -> str:
    """Return the version of this package that wrote a file."""
    return str(values.get("version", "0.1" if schema_of(values) == 1 else "an unknown version"))


def without_version(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a file's content without what it says of its version.

    Raises:
        DamagedError: a later version wrote it.
    """
    if not 1 <= schema_of(values) <= SCHEMA:
        raise DamagedError(
            f"{path} was written by version {written_by(values)} of this package, a later one than this "
            f"({__version__})",
            remedy="Use that version",
        )
    return {key: value for key, value in values.items() if key not in _KEYS}
