"""Fréchet distances between sets of features, honest for small sets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg.blas import dsyrk

from rebalance.errors import InputError
from rebalance.measures.estimators import ledoit_wolf

# Keep a class without any variance, or without any in some direction, usable; far below any real feature variance.
_LEAST_VARIANCE, _LEAST_SHARE = 1e-10, 1e-12
_INFINITY_POINTS = 8  # sizes of subsets that the line in 1/n is fitted to
_DRAWN_AT_ONCE = 65_536  # rows of Gaussian draws in memory at once
_BLOCK = 2048  # rows taken in float64 at once


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64, Ledoit-Wolf shrunk, positive definite.
        n: number of images.
    """

    mean: np.ndarray
    covariance: np.ndarray
    n: int


@dataclass(frozen=True)
class FrechetResult:
    """A squared Fréchet distance and what it can be compared with.

    Attributes:
        distance: between the two sets.
        bias: expected distance of two sets of these sizes drawn from one Gaussian with the real moments (formula).
        floor: the same by simulation: mean distance of pairs of Gaussian draws.
        n_real: images of the real set.
        n_synthetic: images of the synthetic set.
        dimensions: dimensions after reduction.
    """

    distance: float
    bias: float
    floor: float
    n_real: int
    n_synthetic: int
    dimensions: int


@dataclass(frozen=True)
class Projection:
    """Principal components of pooled real features.

    Attributes:
        centre: (D,) float64.
        axes: (D, d) float64, orthonormal columns.
    """

    centre: np.ndarray
    axes: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, D) to (n, d) float64."""
        return (features.astype(np.float64) - self.centre) @ self.axes


def fit_projection(features: np.ndarray, dimensions: int) -> Projection:
    """Fit at most `dimensions` principal components to pooled real features (n, D)."""
    centre = features.mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(features.astype(np.float64) - centre, full_matrices=False)
    kept = min(dimensions, max(1, len(features) - 1), len(axes))
    axes = axes[:kept].T
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(kept)])
    return Projection(centre, axes * signs)


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features (n, d), the covariance shrunk (Ledoit and Wolf, 2004).

    Raises:
        InputError: fewer than 2 images, or values that are not finite.
    """
    if len(features) < 2:
        raise InputError("a Fréchet distance needs at least 2 images on each side", value=len(features))
    if not np.isfinite(features).all():
        raise InputError("features contain values that are not finite")
    features = features.astype(np.float64)
    covariance, _ = ledoit_wolf(features)
    return Moments(features.mean(0), positive_definite(covariance), len(features))


def positive_definite(covariance: np.ndarray) -> np.ndarray:
    """Return a covariance (d, d) with so little added to its diagonal that no distance tells, but a root exists."""
    return covariance + np.eye(len(covariance)) * max(_LEAST_VARIANCE, _LEAST_SHARE * np.trace(covariance))


class StreamingMoments:
    """Mean and covariance of features that come in parts, in float64; parts merge in any order.

    Sums of squares are taken around the mean (Chan, Golub and LeVeque, 1983), so nothing is lost to a large mean. What
    shrinking needs of the third and fourth powers is kept as well. Memory does not grow with n.
    """

    def __init__(self, dimensions: int) -> None:
        self.n = 0
        self.mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))
        self._third = np.zeros(dimensions)  # sum of |y|^2 y, with y around the mean
        self._fourth = 0.0  # sum of |y|^4

    def add(self, features: np.ndarray) -> None:
        """Take in features (b, d).

        Raises:
            InputError: values that are not finite.
        """
        if not np.isfinite(features).all():
            raise InputError("features contain values that are not finite")
        if len(features):
            part = StreamingMoments(len(self.mean))
            part.n, part.mean = len(features), features.mean(0, dtype=np.float64)
            centred = features - part.mean
            lengths = np.square(centred).sum(1)
            part._scatter, part._third = centred.T @ centred, lengths @ centred
            part._fourth = float(np.square(lengths).sum())
            self.merge(part)

    def merge(self, other: StreamingMoments) -> None:
        """Take in what another has seen."""
        if other.n == 0:
            return
        n = self.n + other.n
        mean = self.mean + (other.mean - self.mean) * (other.n / n)
        (scatter, third, fourth), (scatter2, third2, fourth2) = self._around(mean), other._around(mean)
        self.n, self.mean = n, mean
        self._scatter, self._third, self._fourth = scatter + scatter2, third + third2, fourth + fourth2

    def _around(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return scatter, third and fourth powers around another mean, by expanding |y + s|^2 with the shift s."""
        shift = self.mean - mean
        length, trace, product = shift @ shift, np.trace(self._scatter), self._scatter @ shift
        scatter = self._scatter + np.outer(shift, shift) * self.n
        third = self._third + trace * shift + 2 * product + self.n * length * shift
        fourth = self._fourth + 4 * (self._third + product) @ shift + (2 * trace + self.n * length) * length
        return scatter, third, float(fourth)

    def moments(self) -> Moments:
        """Return what was seen, the covariance unbiased.

        Raises:
            InputError: fewer than 2 images.
        """
        self._check()
        return Moments(self.mean, positive_definite(self._scatter / (self.n - 1)), self.n)

    def shrunk(self) -> Moments:
        """Return what was seen, the covariance shrunk: what `moments` gives of all features at once.

        Raises:
            InputError: fewer than 2 images.
        """
        self._check()
        d, covariance = len(self.mean), self._scatter / self.n
        variance, squares = np.trace(covariance) / d, np.square(covariance).sum()
        spread = squares - d * variance**2
        noise = min((self._fourth / self.n - squares) / self.n, spread)
        share = noise / spread if noise > 0 else 0.0
        covariance = (1 - share) * covariance + share * variance * np.eye(d)
        return Moments(self.mean, positive_definite(covariance), self.n)

    def _check(self) -> None:
        if self.n < 2:
            raise InputError("a Fréchet distance needs at least 2 images on each side", value=self.n)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything that `from_arrays` needs."""
        numbers = np.array([self.n, self._fourth])
        return {"mean": self.mean, "scatter": self._scatter, "third": self._third, "numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> StreamingMoments:
        """Rebuild what `to_arrays` returned."""
        built = cls(len(arrays["mean"]))
        built.mean, built._scatter, built._third = arrays["mean"], arrays["scatter"], arrays["third"]
        built.n, built._fourth = int(arrays["numbers"][0]), float(arrays["numbers"][1])
        return built


def frechet_distance(real: Moments, synthetic: Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians, ||m - m_r||^2 + tr(S) + tr(S_r) - 2 tr((S_r S)^1/2).

    The trace of the square root is the sum of the roots of the eigenvalues of L^T S L with S_r = L L^T, which is
    symmetric.
    """
    cross = _root_trace(real.covariance, synthetic.covariance)
    shift = np.square(real.mean - synthetic.mean).sum()
    return float(shift + np.trace(real.covariance) + np.trace(synthetic.covariance) - 2 * cross)


def _root_trace(first: np.ndarray, second: np.ndarray) -> float:
    """Return tr((A B)^1/2) of two symmetric matrices, A positive definite, of which the lower triangles are read.

    The eigenvalues of B A, which are those of L^T B L with A = L L^T, without a product of whole matrices.
    """
    eigenvalues = scipy.linalg.eigh(second, first, type=2, driver="gv", eigvals_only=True, check_finite=False)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def bias(real: Moments, n_synthetic: int) -> float:
    """Return the expected distance of samples of one Gaussian, the real one, of the two sizes, to first order."""
    eigenvalues = np.linalg.eigvalsh(real.covariance)
    pairs = np.outer(eigenvalues, eigenvalues) / np.add.outer(eigenvalues, eigenvalues)
    one_side = eigenvalues.sum() + 0.5 * (pairs * (1 + np.eye(len(eigenvalues)))).sum()
    return float(one_side * (1 / real.n + 1 / n_synthetic))


def floor(real: Moments, n_synthetic: int, draws: int, seed: int) -> float:
    """Return the mean distance of Gaussian sets of the two sizes, drawn from the real moments and shrunk alike."""
    generator = np.random.default_rng(seed)
    cholesky = np.linalg.cholesky(real.covariance)

    def features(n: int) -> np.ndarray:
        return real.mean + generator.standard_normal((n, len(real.mean))) @ cholesky.T

    def draw(n: int) -> Moments:
        if n <= _DRAWN_AT_ONCE:
            return moments(features(n))
        stream = StreamingMoments(len(real.mean))
        for first in range(0, n, _DRAWN_AT_ONCE):
            stream.add(features(min(_DRAWN_AT_ONCE, n - first)))
        return stream.shrunk()

    return float(np.mean([frechet_distance(draw(real.n), draw(n_synthetic)) for _ in range(draws)]))


def _plain_moments(features: np.ndarray) -> Moments:
    stream = StreamingMoments(features.shape[1])
    stream.add(features)
    return stream.moments()


@dataclass(frozen=True)
class Extrapolated:
    """A distance at infinitely many synthetic images.

    Attributes:
        value: intercept of the distance over 1/n.
        error: its standard error, from the scatter around the line.
    """

    value: float
    error: float


def distance_at_infinity(real: np.ndarray, synthetic: np.ndarray, seed: int) -> Extrapolated:
    """Extrapolate the distance in 1/n over random subsets of the synthetic set (Chong and Forsyth, 2020).

    It removes the bias of the synthetic side, whose covariances are not shrunk here, because what shrinking does is not
    linear in 1/n; that of the real side, whose size is what it is, stays.

    Args:
        real: (n, d) features.
        synthetic: (m, d) features.
        seed: seed of the subsets.

    Raises:
        InputError: fewer than 16 synthetic images, fewer than 2 real ones, or values that are not finite.
    """
    if len(synthetic) < 2 * _INFINITY_POINTS:
        raise InputError(
            "FD at infinity needs more synthetic images",
            value=len(synthetic),
            allowed=f"{2 * _INFINITY_POINTS} or more",
        )
    of_real, rng = moments(real), np.random.default_rng(seed)
    sizes = np.unique(np.linspace(len(synthetic) // 4, len(synthetic), _INFINITY_POINTS).astype(int))
    distances = [
        frechet_distance(of_real, _plain_moments(synthetic[rng.choice(len(synthetic), size, replace=False)]))
        for size in sizes
    ]
    design = np.stack([np.ones(len(sizes)), 1 / sizes], 1)
    fitted, *_ = np.linalg.lstsq(design, np.array(distances), rcond=None)
    noise = np.square(design @ fitted - distances).sum() / (len(sizes) - 2)
    return Extrapolated(float(fitted[0]), float(np.sqrt(noise * np.linalg.inv(design.T @ design)[0, 0])))


def compare(real: np.ndarray, synthetic: np.ndarray, *, draws: int, seed: int) -> FrechetResult:
    """Compare features of two sets, (n, d) each, with bias and floor beside the distance."""
    return compare_moments(moments(real), moments(synthetic), draws=draws, seed=seed)


def compare_moments(real: Moments, synthetic: Moments, *, draws: int, seed: int) -> FrechetResult:
    """Compare shrunk moments of two sets, with bias and floor beside the distance."""
    return FrechetResult(
        distance=frechet_distance(real, synthetic),
        bias=bias(real, synthetic.n),
        floor=floor(real, synthetic.n, draws, seed),
        n_real=real.n,
        n_synthetic=synthetic.n,
        dimensions=len(real.mean),
    )


def unreduced_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the squared Fréchet distance in all dimensions, covariances plain; of Inception features it is FID.

    Few images make it too large, so it compares only with figures for as many images. Covariances of fewer images than
    dimensions are singular: the trace of the square root is then taken as the sum of the singular values of the product
    of the centred features, which needs neither covariance.

    Args:
        real: (n, d) features.
        synthetic: (m, d) features.

    Raises:
        InputError: fewer than 2 images on a side, or values that are not finite.
    """
    for features in (real, synthetic):
        if len(features) < 2:
            raise InputError("a Fréchet distance needs at least 2 images on each side", value=len(features))
        if not np.isfinite(features).all():
            raise InputError("features contain values that are not finite")
    means = [features.mean(0, dtype=np.float64) for features in (real, synthetic)]
    if min(len(real), len(synthetic)) < real.shape[1]:
        sides = [(x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((real, synthetic), means, strict=True)]
        cross, traces = _root_trace_of_few(*sides), sum(np.square(side).sum() for side in sides)
    else:
        covariances = [_lower_covariance(x, mean) for x, mean in zip((real, synthetic), means, strict=True)]
        cross, traces = _root_trace_of_any(*covariances), sum(np.trace(covariance) for covariance in covariances)
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * cross)


def _lower_covariance(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the lower triangle of the covariance (d, d) of features (n, d), in blocks: no copy of all in float64."""
    scatter = np.zeros((features.shape[1],) * 2, order="F")
    for first in range(0, len(features), _BLOCK):
        block = features[first : first + _BLOCK] - mean
        scatter = dsyrk(1.0, block.T, beta=1.0, c=scatter, lower=1, overwrite_c=1)
    return scatter / (len(features) - 1)


def _root_trace_of_few(first: np.ndarray, second: np.ndarray) -> float:
    """Return tr((X^T X Y^T Y)^1/2) of X (n, d) and Y (m, d), the singular values of X Y^T."""
    few, many = (first, second) if len(first) <= len(second) else (second, first)
    product = few @ many.T
    return float(np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(min=0)).sum())


def _root_trace_of_any(first: np.ndarray, second: np.ndarray) -> float:
    """Return tr((A B)^1/2) of lower triangles, of which both may be singular, as where a feature never varies."""
    for a, b in ((first, second), (second, first)):
        with contextlib.suppress(np.linalg.LinAlgError):
            return _root_trace(a, b)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    whole = second + np.tril(second, -1).T
    return float(np.sqrt(np.linalg.eigvalsh(root @ whole @ root).clip(min=0)).sum())
