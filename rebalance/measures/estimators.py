"""Estimators of scikit-learn and SciPy, imported when first asked for.

The two take a second of each process, and most processes only apply what was fitted before.
"""

from __future__ import annotations

import numpy as np


def ledoit_wolf(samples: np.ndarray, assume_centered: bool = False) -> tuple[np.ndarray, float]:
    """Return the shrunk covariance (d, d) of samples (n, d) and its shrinkage in [0, 1] (Ledoit and Wolf, 2004).

    Args:
        samples: float64.
        assume_centered: their mean is zero and is not taken off.
    """
    from sklearn import covariance

    return covariance.ledoit_wolf(samples, assume_centered=assume_centered)


def student_quantile(probability: float, freedom: float) -> float:
    """Return the value below which Student's t of so many degrees of freedom lies with a probability in (0, 1)."""
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))
