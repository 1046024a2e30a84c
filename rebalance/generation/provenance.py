"""What an image was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["images", "latent", "file"]

REFERENCES = " | "
"""Stands between the names of an image's references in text."""


@dataclass(frozen=True)
class Provenance:
    """The origin of an image.

    Attributes:
        origin: "images": made from the real images named; "latent": from a random latent, so what it owes to single
            real images cannot be told; "file": given as a file, made elsewhere.
        images: names of the real images that it was made from, its source first; () for other origins.
    """

    origin: Origin
    images: tuple[str, ...] = ()
