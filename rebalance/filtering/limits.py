"""Limits that the next value keeps, learned from few: by rank where they are enough, else by Student's prediction."""

from __future__ import annotations

import numpy as np

from rebalance.measures.estimators import student_quantile

# Images that the known deviation counts as; of fewer, the first few images say nearly all.
_PRIOR_IMAGES = 8


def rank_of_next(n: int, share: float) -> int:
    """Return the rank among n values that the next one exceeds with probability 1 - share at most; above n for few."""
    return int(np.ceil((n + 1) * share - 1e-9))


def limit_of_next(values: np.ndarray, share: float, prior: float, at_least_largest: bool = True) -> float:
    """Return what the next value stays below with a probability of `share`, having seen n of its kind; inf for none.

    Where n is too small for the order of the values to say it, Student's prediction says it: a quantile of few values
    lies too low. The deviation is held towards a known one, as if eight more values had it.

    Args:
        values: (n,), about Gaussian.
        share: the probability.
        prior: that deviation.
        at_least_largest: whether a prediction is no less than the largest value.
    """
    n, rank = len(values), rank_of_next(len(values), share)
    if rank <= n:
        return float(np.sort(values)[rank - 1])
    if n == 0:
        return np.inf
    squares = np.square(values - values.mean()).sum() + _PRIOR_IMAGES * prior**2
    freedom = n - 1 + _PRIOR_IMAGES
    reach = student_quantile(share, freedom) * np.sqrt(squares / freedom * (1 + 1 / n))
    predicted = values.mean() + reach
    return float(max(values.max(), predicted) if at_least_largest else predicted)


def log_odds_of(probability: np.ndarray | float) -> np.ndarray:
    """Return log-odds of probabilities, which are told apart by six decimals, as scores are."""
    inside = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def probability_of(log_odds: float | np.ndarray) -> float:
    """Return the probability of log-odds."""
    return float(1 / (1 + np.exp(-log_odds)))
