"""Fill up the rare classes of an image data set with translated images of its rich ones.

The public functions, in the order of use: `inspect`, `plan`, `fit`, `generate`, `filter`, `verify`, `evaluate`,
`downstream`, `load_shards`. They are imported on first use, because torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebalance.version import __version__

if TYPE_CHECKING:
    from rebalance.api import inspect, plan, verify
    from rebalance.evaluation import evaluate
    from rebalance.shards import filter, generate, load_shards
    from rebalance.training import fit
    from rebalance.trials import downstream

_HOMES = {
    "downstream": "rebalance.trials",
    "evaluate": "rebalance.evaluation",
    "inspect": "rebalance.api",
    "plan": "rebalance.api",
    "fit": "rebalance.training",
    "filter": "rebalance.shards",
    "generate": "rebalance.shards",
    "verify": "rebalance.api",
    "load_shards": "rebalance.shards",
}

__all__ = [
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
    """Import a public function on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rebalance' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
