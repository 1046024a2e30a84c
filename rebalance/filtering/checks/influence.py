"""Reject images that take the set's Fréchet distance up.

The share kept is the one with which the pool's kept images come nearest to held-out real ones, compared with as many
images kept at random, as long as they cover no less of the real images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from rebalance.filtering.checks.base import (
    LEAST_HELD_OUT,
    Check,
    ClassMaterial,
    Fit,
    FittedCheck,
    Limit,
    ScoredBatch,
    StoredCheck,
)
from rebalance.measures import frechet
from rebalance.measures.influence import Influence, influence_among_kept
from rebalance.measures.neighbours import NEIGHBOURS, neighbourhoods

# Shares of the pool that are tried; below half, images that are kept for chance's sake cost coverage.
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
# Sets kept at random that a share is compared with: enough for the deviation of their distance.
_RANDOM_SETS = 8
# Without a fifth of a small pool, influence is another function, and fewer than asked would pass.
_FOLDS, _FOLDS_OF_FEW, _FEW = 5, 20, 256
# Coverage that a share may cost against random images: about its noise between sets of a few hundred.
_COVERAGE_LOSS = 0.02
# A share must gain more than chance explains: deviations of the distance over random sets.
_DEVIATIONS = 2


@dataclass(frozen=True)
class FittedInfluence(FittedCheck):
    """The influence function of a class, and the largest influence allowed.

    Attributes:
        influence: of single images on the Fréchet distance.
        max_influence: largest influence allowed.
        pool: (p,) influences of the pool's images, ascending, each measured from the others.
    """

    influence: Influence
    max_influence: float
    pool: np.ndarray

    @cached_property
    def threshold(self) -> float:
        """The limit as a share of the pool, rounded as scores are."""
        return round(float(np.searchsorted(self.pool, self.max_influence, side="right")) / max(len(self.pool), 1), 6)

    def score(self, batch: ScoredBatch) -> np.ndarray:
        """Return the share of the pool with less influence."""
        places = np.searchsorted(self.pool, self.influence.of(batch.components), side="left")
        return np.asarray(places / max(len(self.pool), 1))

    def fails(self, score: float) -> bool:
        """Return whether it is above the limit."""
        return score > self.threshold

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store."""
        return {"pool": self.pool} | {f.name: np.asarray(getattr(self.influence, f.name)) for f in fields(Influence)}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers to store."""
        return {"max_influence": self.max_influence}


class InfluenceCheck(Check):
    """Reject what takes the set's Fréchet distance up by more than the limit allows."""

    name = "influence"
    score_name = "influence"
    score_doc = "share of a pool of candidates that increase the Fréchet distance less"
    threshold_name = "keep"
    limit = Limit("keep", 0.01, 1.0)
    after_others = True

    def fit(self, material: ClassMaterial) -> Fit | None:
        """Take the share that is given, or choose it; None where too few images are known."""
        survivors = material.pool.features[material.survivors]
        why_not = _too_few(material, len(survivors))
        if why_not:
            material.note(f"{why_not}: influence is not asked")
            return None
        share = material.limit or _best_share(material, survivors)
        small, real = material.space.projection.apply(survivors), material.space.moments(material.train)
        values = _unseen_influence(real, small, share, material.seed)
        most = float(np.quantile(values, share))
        fitted = FittedInfluence(influence_among_kept(real, small, share), most, np.sort(values))
        # From itself the influence of an image would be too low, so the pool is judged by what the others say.
        return Fit(fitted, values > most)

    def restored(self, stored: StoredCheck) -> FittedInfluence:
        """Rebuild the fitted check."""
        arrays = stored.arrays
        influence = Influence(arrays["quadratic"], arrays["linear"], float(arrays["constant"].item()))
        return FittedInfluence(influence, stored.numbers["max_influence"], arrays["pool"])


def _too_few(material: ClassMaterial, n_survivors: int) -> str:
    """Return why influence cannot be asked, "" when it can; a share that is given needs no held-out images."""
    of_pool = f"{n_survivors} of {len(material.survivors)} candidates passed the other checks"
    if material.limit is not None:
        return "" if n_survivors > _FOLDS else of_pool
    if n_survivors < 2 * LEAST_HELD_OUT:
        return of_pool
    if material.has_held_out or len(material.train) >= LEAST_HELD_OUT:
        return ""
    return f"{len(material.held_out)} held-out and {len(material.train)} train images are too few"


def _unseen_influence(real: frechet.Moments, small: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the influence (n,) of each image (n, d), measured from the others."""
    values, folds = np.empty(len(small)), min(len(small), _FOLDS_OF_FEW if len(small) < _FEW else _FOLDS)
    for left_out in np.array_split(np.random.default_rng(seed).permutation(len(small)), folds):
        others = np.delete(small, left_out, 0)
        values[left_out] = influence_among_kept(real, others, share).of(small[left_out])
    return values


@dataclass(frozen=True)
class _Trial:
    """Real images that influence is measured by, real ones that what it keeps is compared with, and the same of pools.

    All are features, (n, D).
    """

    real: np.ndarray
    unseen_real: np.ndarray
    pool: np.ndarray
    unseen_pool: np.ndarray


def _best_share(material: ClassMaterial, survivors: np.ndarray) -> float:
    """Return the share to keep: the kept set's distance against that of as many images at random, coverage held.

    Influence is measured from one half of the pool and judged on the other, and the halves change places: within
    one set it would also even out what chance has made of that set, which says nothing of the next images.
    """
    best, best_gain = 1.0, 0.0
    halves = np.array_split(np.random.default_rng(material.seed).permutation(survivors), 2)
    trials = [_Trial(*side, *pools) for side in _sides(material) for pools in (halves, halves[::-1])]
    for share in _SHARES:
        gain, deviation, covered = np.mean([_gain(material, share, trial) for trial in trials], 0)
        if covered >= -_COVERAGE_LOSS and gain > max(best_gain, _DEVIATIONS * deviation):
            best, best_gain = share, gain
    return best


def _sides(material: ClassMaterial) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return real images that influence is measured by, and others that what it keeps is compared with.

    Where too few are held out, these are halves of the train images, each once on either side.
    """
    if material.has_held_out:
        return [(material.train, material.held_out)]
    n_held_out = len(material.held_out)
    material.note(f"{n_held_out} held-out images are too few: the share to keep is chosen by halves of the train ones")
    halves = np.array_split(np.random.default_rng(material.seed).permutation(material.train), 2)
    return [(halves[0], halves[1]), (halves[1], halves[0])]


def _gain(material: ClassMaterial, share: float, trial: _Trial) -> tuple[float, float, float]:
    """Return by how much a share kept comes nearer to real images than one at random.

    Returns:
        The gain in distance, the deviation of that over random sets, and the gain in coverage.
    """
    space, unseen, judged = material.space, trial.unseen_real, trial.unseen_pool
    project, real = space.projection.apply, space.moments(unseen)
    small, rng = project(judged), np.random.default_rng(material.seed)
    values = influence_among_kept(space.moments(trial.real), project(trial.pool), share).of(small)
    kept = np.argsort(values, kind="stable")[: round(share * len(small))]
    random = [rng.choice(len(small), len(kept), replace=False) for _ in range(_RANDOM_SETS)]
    by_chance = [frechet.frechet_distance(real, frechet.moments(small[r])) for r in random]
    gain = np.mean(by_chance) - frechet.frechet_distance(real, frechet.moments(small[kept]))
    covered = _coverage(unseen, judged[kept]) - np.mean([_coverage(unseen, judged[r]) for r in random])
    return float(gain), float(np.std(by_chance)), float(covered)


def _coverage(real: np.ndarray, synthetic: np.ndarray) -> float:
    if min(len(real), len(synthetic)) <= NEIGHBOURS:
        return 0.0
    return neighbourhoods(real, synthetic).coverage
