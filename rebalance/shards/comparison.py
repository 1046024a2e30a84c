"""What comparing an output with real images needs: its classes, its features and its view."""

from __future__ import annotations

from collections.abc import Iterable

from rebalance.config import EXTRACTORS, FeatureOptions
from rebalance.config.requests import FeatureChoice
from rebalance.errors import InputError
from rebalance.imaging.views import View, view_for
from rebalance.index import ImageIndex
from rebalance.shards.records import Manifest


def feature_options(manifest: Manifest | None, choice: FeatureChoice) -> FeatureOptions:
    """Return the features asked for, else the run's, else the default."""
    of_run = manifest.features if manifest else FeatureOptions()
    input_px = of_run.input_px if choice.input_px is None else choice.input_px
    named = choice.name if choice.name in EXTRACTORS else None
    return FeatureOptions(
        extractor=named or of_run.extractor,
        input_px=input_px,
        layer=of_run.layer if input_px == of_run.input_px else None,
        weights=str(choice.weights) if choice.weights else "",
    )


def comparison_view(
    largest_px: int, manifest: Manifest | None, square: str | None, encoding: tuple[str, int] | None
) -> View:
    """Return the view in which synthetic and real images are compared.

    Args:
        largest_px: largest side of the synthetic images.
        manifest: of the output that they are; None for anything else.
        square: how other shapes become square; None: as in the output, else "crop".
        encoding: format and quality that real images go through.
    """
    return view_for(largest_px, square or (manifest.square if manifest else "crop"), encoding)


def check_known(made: Iterable[str], index: ImageIndex) -> None:
    """Check that there are synthetic images, and that the real data set has their classes.

    Raises:
        InputError: no synthetic image, or one of a class that is unknown.
    """
    names = sorted(made)
    if not names:
        raise InputError("there is no synthetic image")
    unknown = [name for name in names if name not in index.classes]
    if unknown:
        raise InputError(
            "synthetic images of classes that the real data set does not have",
            value=unknown[:5],
            allowed=", ".join(index.classes),
        )
