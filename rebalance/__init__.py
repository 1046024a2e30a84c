"""Fill up the rare classes of an image data set with synthetic images.

The public functions, in the order of use: `inspect`, `plan`, `fit`, `generate`, `filter`, `verify`, `evaluate`,
`downstream`, `load_shards`. All of them are in `rebalance.api`; their option objects are `OutputOptions`,
`FilterChoice`, `FeatureChoice` and `StudyOptions`. They are imported on first use, to keep `import rebalance` quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebalance.version import __version__

if TYPE_CHECKING:
    from rebalance.api import downstream, evaluate, filter, fit, generate, inspect, load_shards, plan, verify
    from rebalance.config.requests import FeatureChoice, FilterChoice, OutputOptions, StudyOptions

__all__ = [
    "FeatureChoice",
    "FilterChoice",
    "OutputOptions",
    "StudyOptions",
    "__version__",
    "downstream",
    "evaluate",
    "filter",
    "fit",
    "generate",
    "inspect",
    "load_shards",
    "plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'rebalance' has no attribute {name!r}")
    from rebalance import api  # it imports the option objects as well

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
