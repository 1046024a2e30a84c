"""How much each image of a set adds to its Fréchet distance from real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance.measures.frechet import Moments, frechet_distance, moments

_STEPS, _STEP = 24, 0.1


@dataclass(frozen=True)
class Influence:
    """How much an image adds to a squared Fréchet distance, to first order: x . linear + x^T quadratic x + constant.

    Attributes:
        quadratic: (d, d) float64, I - T.
        linear: (d,) float64.
        constant: makes the mean over the synthetic set 0, a Gaussian with the moments that it is taken at.
    """

    quadratic: np.ndarray
    linear: np.ndarray
    constant: float

    def of(self, features: np.ndarray) -> np.ndarray:
        """Return the influence (n,) of features (n, d); without image i the distance is of(x_i) / (n - 1) smaller."""
        features = features.astype(np.float64)
        return ((features @ self.quadratic) * features).sum(1) + features @ self.linear + self.constant


def influence_at(real: Moments, synthetic: Moments) -> Influence:
    """Return the influence function of the squared Fréchet distance at a synthetic set's moments.

    IF(x) = 2 (m - m_r).(x - m) + (x - m)^T (I - T)(x - m) - tr((I - T) S), with T the optimal transport map from
    N(m, S) to N(m_r, S_r), the gradient of the trace term. I - T is indefinite: where the synthetic set varies less
    than the real one, far images have low influence, so outliers must be rejected otherwise.

    Args:
        real: moments of real images, in d dimensions.
        synthetic: those of the synthetic set, in as many.
    """
    values, vectors = np.linalg.eigh(real.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner_values, inner_vectors = np.linalg.eigh(root @ synthetic.covariance @ root)
    inverse = (inner_vectors / np.sqrt(inner_values.clip(min=inner_values.max() * 1e-12))) @ inner_vectors.T
    quadratic = np.eye(len(values)) - root @ inverse @ root
    shift, mean = 2 * (synthetic.mean - real.mean), synthetic.mean
    constant = mean @ quadratic @ mean - shift @ mean - np.trace(quadratic @ synthetic.covariance)
    return Influence(quadratic, shift - 2 * quadratic @ mean, float(constant))


def influence_among_kept(real: Moments, features: np.ndarray, share: float) -> Influence:
    """Return the influence with which the share of a synthetic set that has the least of it comes nearest.

    Influence at the whole set's moments is a gradient, true of the first image left out. Leave out half by it, and the
    rest err to the other side: the mean overshoots, the covariance shrinks. So the moments at which it is taken follow
    those of the images that it keeps, a tenth of the way at a time (conditional gradients: Frank and Wolfe, 1956). Of
    all steps, the one whose kept images are nearest counts: where the real moments can be met, influence goes to zero
    there and its order is chance.

    Args:
        real: moments of real images.
        features: (n, d) of the synthetic set.
        share: of it that is kept.
    """
    n_kept, at = max(2, round(share * len(features))), moments(features)
    steps: list[tuple[float, Influence]] = []
    for _ in range(_STEPS):
        influence = influence_at(real, at)
        kept = moments(features[np.argsort(influence.of(features), kind="stable")[:n_kept]])
        steps.append((frechet_distance(real, kept), influence))
        at = Moments(
            at.mean + _STEP * (kept.mean - at.mean),
            at.covariance + _STEP * (kept.covariance - at.covariance),
            n_kept,
        )
    return min(steps, key=lambda step: step[0])[1]
