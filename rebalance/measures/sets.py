"""Sets of features: checked before they are compared, and drawn from."""

from __future__ import annotations

import numpy as np

from rebalance.errors import InputError

_BLOCK = 2048


def _checked(real: np.ndarray, synthetic: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    for side, features in (("real", real), ("synthetic", synthetic)):
        if len(features) < least:
            raise InputError(f"too few {side} images", value=len(features), allowed=f"{least} or more")
        if not np.isfinite(features).all():
            raise InputError(f"features of {side} images contain values that are not finite")
    return real.astype(np.float64), synthetic.astype(np.float64)


def at_most(rows: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Return at most n rows of an array, drawn by a key, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(key).choice(len(rows), n, replace=False))]
