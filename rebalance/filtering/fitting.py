"""Setting the limits of a class's image filter, by its real images and a pool of candidates.

The threshold on influence is the one with which the pool's kept images come nearest to held-out real ones, compared
with as many images kept at random, as long as they cover no less of the real images.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rebalance import frechet, metrics
from rebalance.class_probe import fit_probe
from rebalance.config import CHECKS
from rebalance.errors import InputError
from rebalance.estimators import ledoit_wolf, student_quantile
from rebalance.filtering.bank import Bank, fit_bank, product
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.image_filter import (
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    OUTLIER,
    FilterOptions,
    ImageFilter,
    Space,
    Verdict,
    confidence_of,
    from_centre,
    mahalanobis,
)
from rebalance.filtering.limits import limit_of_next, log_odds_of, probability_of, rank_of_next
from rebalance.influence import Influence, influence_among_kept

logger = logging.getLogger(__name__)

_KEPT_OF_REAL = 0.99
_CONFIDENT_OF_REAL = 0.95
_MOST_CONFIDENCE = 0.5
_UNSURE_OF_OTHERS = 0.9
_MISSED_COPIES = 0.1
_LEAST_HELD_OUT = 30
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
_RANDOM_SETS = 8
# Without a fifth of a small pool, influence is another function, and fewer than asked would pass.
_FOLDS, _FOLDS_OF_FEW, _FEW = 5, 20, 256
_COVERAGE_LOSS = 0.02
_SAME_IMAGE = 1 - 1e-6
# Of -log(1 - cosine) of real images to the nearest other one; 0.3 to 0.4 for shirts, sneakers, bags and boots.
_NEARNESS_DEVIATION = 0.35
_MOST_LEFT_OUT = 2000


@dataclass(frozen=True)
class FittedFilter:
    """A filter, and what it says of the pool that it was fitted to.

    Attributes:
        image_filter: the filter.
        pool: verdicts on the pool's images, each image's influence measured from the others.
    """

    image_filter: ImageFilter
    pool: tuple[Verdict, ...]


def fit_space(real: RealFeatures, dimensions: int, per_class: int, seed: int) -> Space:
    """Fit what all classes share.

    Args:
        real: the real features.
        dimensions: principal components, at most.
        per_class: images of a class that the components are fitted to, at most.
        seed: seed of all draws.
    """
    parts = [metrics.at_most(f, per_class, seed, number) for number, f in enumerate(real.train.values())]
    projection = frechet.fit_projection(np.concatenate(parts), dimensions)
    small = [projection.apply(part) for part in parts if len(part)]
    scatter = np.concatenate([part - part.mean(0) for part in small])
    within, shrinkage = ledoit_wolf(scatter, assume_centered=True)
    values, vectors = np.linalg.eigh(within)
    whitening = vectors / np.sqrt(values.clip(min=max(values.max() * 1e-9, 1e-12))) @ vectors.T
    return Space(projection, whitening, fit_probe(real.train, seed), float(1 - shrinkage) / len(scatter))


def fit_filter(
    class_name: str, real: RealFeatures, space: Space, pool: Evidence, options: FilterOptions, seed: int
) -> FittedFilter:
    """Calibrate the checks of a class.

    Args:
        class_name: the class.
        real: real features; at least 2 train images of the class.
        space: of `fit_space` on the same.
        pool: p candidates.
        options: checks and limits.
        seed: seed of all draws.

    Raises:
        InputError: too few real images or candidates, or values that are not finite.
    """
    train, held_out = real.train[class_name], real.held_out.get(class_name, np.zeros((0, pool.features.shape[1])))
    if len(train) < 2:
        raise InputError(
            f"class {class_name!r} has too few real images for a filter", value=len(train), allowed="2 or more"
        )
    own = [(class_name, features) for features in (train, held_out, pool.features)]
    for name, features in (*own, *real.others.items()):
        if not np.isfinite(features).all():
            raise InputError(f"features of class {name!r} contain values that are not finite")
    fitting = _Fitting(class_name, real, train, held_out, space, options, seed)
    mean, precision, max_distance = fitting.distance()
    without_influence = ImageFilter(
        class_name=class_name,
        checks=tuple(check for check in CHECKS if check in options.checks),
        space=space,
        mean=mean,
        precision=precision,
        max_distance=max_distance,
        texture=fitting.texture(),
        min_confidence=fitting.min_confidence(pool.confidence is not None),
        bank=fitting.bank,
        max_similarity=fitting.max_similarity(),
        influence=Influence(np.zeros_like(precision), np.zeros_like(mean), 0.0),
        max_influence=0.0,
        pool=np.zeros(0),
    )
    return fitting.with_influence(without_influence, pool)


@dataclass(frozen=True)
class _Fitting:
    """The calibration of one class, check by check."""

    class_name: str
    real: RealFeatures
    train: np.ndarray
    held_out: np.ndarray
    space: Space
    options: FilterOptions
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def _has_held_out(self) -> bool:
        return len(self.held_out) >= _LEAST_HELD_OUT

    def distance(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and precision of the real images, and the distance within which 99% lie, each seen from the others."""
        whitened = self.space.projection.apply(self.train) @ self.space.whitening
        n, mean = len(whitened), whitened.mean(0)
        if OUTLIER in self.options.checks and rank_of_next(n, _KEPT_OF_REAL) > n:
            self._note(f"{n} train images are too few to count: the limits on outliers are predicted")
        centred = whitened - mean
        _, shrinkage = ledoit_wolf(centred, assume_centered=True)
        # Towards the pooled within-class covariance, which is the identity here; of few images little is known.
        shrinkage = max(shrinkage, min(1.0, len(mean) / (4 * n)))
        covariance = (1 - shrinkage) * centred.T @ centred / n + shrinkage * np.eye(len(mean))
        precision = np.linalg.inv(covariance)
        # Leaving one out moves the mean and takes one outer product from the covariance (Sherman and Morrison, 1950),
        # and from the pooled one, which knows each image too: where real images are few, that is most of it.
        own = mahalanobis(centred, precision) ** 2
        taken = ((1 - shrinkage) / n + shrinkage * self.space.image_weight) * n / (n - 1)
        left_out = np.sqrt((n / (n - 1)) ** 2 * own / (1 - taken * own).clip(min=1e-6))
        # A Gaussian's distances in d dimensions have a logarithm with a deviation of about 1 / sqrt(2 d).
        logs = np.log(left_out.clip(min=1e-12))
        return mean, precision, float(np.exp(limit_of_next(logs, _KEPT_OF_REAL, 1 / np.sqrt(2 * len(mean)))))

    def texture(self) -> tuple[float, ...]:
        """Mean and largest deviation of the real images' texture: what 99% keep, seen from the others, or 3 sigma."""
        of_train = self.real.texture.get(self.class_name)
        if of_train is None:
            return ()
        n, mean, sigma = len(of_train), float(of_train.mean()), float(of_train.std(ddof=1))
        deviation = np.sort(np.abs(of_train - mean)) * n / (n - 1)
        # Student's interval of the next image; wide where few say how much images vary.
        by_sigma = sigma * max(3.0, np.sqrt(1 + 1 / n) * student_quantile((1 + _KEPT_OF_REAL) / 2, n - 1))
        return mean, float(max(deviation[min(rank_of_next(n, _KEPT_OF_REAL), n) - 1], by_sigma, 1e-3))

    @cached_property
    def _centred(self) -> np.ndarray:
        return from_centre(self.train, self.space.projection)

    @cached_property
    def bank(self) -> Bank:
        """What a memorised image is similar to: train images, then their near copies, kind by kind."""
        centre = self.space.projection.centre.astype(np.float32)
        return fit_bank(self._centred, self.real.copies.get(self.class_name), centre, self.seed)

    def min_confidence(self, own: bool) -> float:
        """The least confidence: given, or what 95% of real images reach by classifiers that have not seen them.

        Where nine in ten images of every other class stay below that, it is the middle between the two, in log-odds:
        classifiers that know few images are unsure of the next ones, even of those that nobody would mistake.

        Args:
            own: whether the method's own confidence is asked too; of train images, which it has seen, it counts as 1.
        """
        if self.options.min_confidence is not None:
            return self.options.min_confidence
        if LOW_CONFIDENCE not in self.options.checks or self.space.probe is None:
            return 0.0
        if self._has_held_out:
            of_method = self.real.confidence.get(self.class_name) if own else None
            unseen = confidence_of(self.space, self.class_name, self.held_out, of_method)
        else:
            unseen = self._unseen_confidence(self.class_name, own)
        reached = min(probability_of(-limit_of_next(-log_odds_of(unseen), _CONFIDENT_OF_REAL, 1.0)), _MOST_CONFIDENCE)
        of_others = self._confidence_of_others(own)
        if of_others >= reached:
            return reached
        return probability_of((log_odds_of(reached) + log_odds_of(of_others)) / 2)

    def _unseen_confidence(self, of: str, own: bool) -> np.ndarray:
        """How sure of this class one is for train images of a class, by classifiers that have not seen them."""
        unseen = self.real.unseen_confidence(self.class_name, of, self.seed)
        return np.sqrt(unseen) if own else unseen

    def _confidence_of_others(self, own: bool) -> float:
        """What nine in ten images of the most similar other class stay below; 1 where it is not known.

        They are val images; of a class without any, train images by classifiers that have not seen them. A class of a
        single image says nothing.
        """
        by_method = self.real.others_confidence.get(self.class_name)
        if not self.real.others or (own and by_method is None):
            return 1.0
        found = []
        for name in self.real.train:
            if name == self.class_name:
                continue
            if name in self.real.others:
                of_method = by_method[name] if own else None
                found.append(confidence_of(self.space, self.class_name, self.real.others[name], of_method))
            elif len(self.real.train[name]) > 1:
                found.append(self._unseen_confidence(name, own))
        if sum(map(len, found)) < _LEAST_HELD_OUT:
            return 1.0
        return max(float(np.sort(of)[min(rank_of_next(len(of), _UNSURE_OF_OTHERS), len(of)) - 1]) for of in found)

    def max_similarity(self) -> float:
        """The largest similarity: given, or what that of the next real image to train images stays within by 99%.

        With few held-out images, train images tell it, each by the others; what most near copies reach is allowed too.
        """
        if self.options.max_similarity is not None:
            return self.options.max_similarity
        if MEMORISED not in self.options.checks:
            return 1.0
        allowed = -1.0
        if self._has_held_out:
            centred = from_centre(self.held_out, self.space.projection)
            nearest = self.bank.similarity(centred, product(centred, self.bank.axes))
        else:
            self._note(f"{len(self.held_out)} held-out images are too few: memorised is judged by train images")
            nearest, of_copies = self._left_out_similarities()
            of_copies = of_copies[of_copies < _SAME_IMAGE]
            if of_copies.size:
                # Few neighbours say little of how near real images come; what is as near as most copies is one.
                allowed = float(np.quantile(of_copies, _MISSED_COPIES))
        # A pair of real images that are nearly the same says nothing of the next one, so the largest sets no limit.
        nearness = -np.log1p(-nearest[nearest < _SAME_IMAGE].astype(np.float64))
        limit = limit_of_next(nearness, _KEPT_OF_REAL, _NEARNESS_DEVIATION, at_least_largest=False)
        return min(max(float(-np.expm1(-limit)), allowed), _SAME_IMAGE)

    def _left_out_similarities(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of at most 2,000 train images to the nearest of the others (m,), and to their own copies (c, m)."""
        n, bank = len(self.train), self.bank
        chosen = metrics.at_most(np.arange(n), _MOST_LEFT_OUT, self.seed)
        own = chosen[:, None] + np.arange(0, len(bank.rows), n)
        nearest = bank.similarity(self._centred[chosen], product(self._centred[chosen], bank.axes), own)
        itself = bank.rows_at(chosen)
        of_copies = [np.einsum("nd,nd->n", itself, bank.rows_at(kind)) for kind in own.T[1:]]
        return nearest, np.array(of_copies)

    def with_influence(self, found: ImageFilter, pool: Evidence) -> FittedFilter:
        """Add the influence on the distance of the pool's images that pass the other checks."""
        others = replace(found, checks=tuple(check for check in found.checks if check != INFLUENCE))
        verdicts = [others.judge(scores) for scores in others.scores(pool)]
        passed = np.array([verdict.accepted for verdict in verdicts], bool)
        if INFLUENCE not in found.checks:
            return FittedFilter(replace(others, notes=tuple(self.notes)), tuple(verdicts))
        why_not = self._without_influence(int(passed.sum()), len(passed))
        if why_not:
            self._note(f"{why_not}: influence is not asked")
            return FittedFilter(replace(others, notes=tuple(self.notes)), tuple(verdicts))
        features = pool.features[passed]
        share = self.options.keep or self._best_share(features)
        small, real = self.space.projection.apply(features), class_moments(self.space, self.train)
        values = self._unseen_influence(real, small, share)
        most = float(np.quantile(values, share))
        for position, value in zip(np.flatnonzero(passed), values, strict=True):
            verdicts[position] = Verdict((INFLUENCE,) if value > most else ())
        complete = replace(
            found,
            influence=influence_among_kept(real, small, share),
            max_influence=most,
            pool=np.sort(values),
            notes=tuple(self.notes),
        )
        return FittedFilter(complete, tuple(verdicts))

    def _without_influence(self, n_passed: int, n_pool: int) -> str:
        """Why influence cannot be asked, "" when it can; a share that is given needs no held-out images."""
        if self.options.keep is not None:
            return "" if n_passed > _FOLDS else f"{n_passed} of {n_pool} candidates passed the other checks"
        if n_passed < 2 * _LEAST_HELD_OUT:
            return f"{n_passed} of {n_pool} candidates passed the other checks"
        if self._has_held_out or len(self.train) >= _LEAST_HELD_OUT:
            return ""
        return f"{len(self.held_out)} held-out and {len(self.train)} train images are too few"

    def _unseen_influence(self, real: frechet.Moments, small: np.ndarray, share: float) -> np.ndarray:
        """The influence of each of the pool's images, from the others: from itself, it would be too low."""
        values, folds = np.empty(len(small)), min(len(small), _FOLDS_OF_FEW if len(small) < _FEW else _FOLDS)
        for left_out in np.array_split(np.random.default_rng(self.seed).permutation(len(small)), folds):
            others = np.delete(small, left_out, 0)
            values[left_out] = influence_among_kept(real, others, share).of(small[left_out])
        return values

    def _best_share(self, features: np.ndarray) -> float:
        """The share to keep: the kept set's distance against that of as many images at random, coverage held.

        Influence is measured from one half of the pool and judged on the other, and the halves change places: within
        one set it would also even out what chance has made of that set, which says nothing of the next images.
        """
        best, best_gain = 1.0, 0.0
        halves = np.array_split(np.random.default_rng(self.seed).permutation(features), 2)
        trials = [(*side, *pools) for side in self._sides() for pools in (halves, halves[::-1])]
        for share in _SHARES:
            gain, deviation, covered = np.mean([self._gain(share, *trial) for trial in trials], 0)
            if covered >= -_COVERAGE_LOSS and gain > max(best_gain, 2 * deviation):
                best, best_gain = share, gain
        return best

    def _sides(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Real images that influence is measured by, and others that what it keeps is held against.

        Where too few are held out, these are halves of the train images, each once on either side.
        """
        if self._has_held_out:
            return [(self.train, self.held_out)]
        self._note(
            f"{len(self.held_out)} held-out images are too few: the share to keep is chosen by halves of the train ones"
        )
        halves = np.array_split(np.random.default_rng(self.seed).permutation(self.train), 2)
        return [(halves[0], halves[1]), (halves[1], halves[0])]

    def _gain(
        self, share: float, known: np.ndarray, unseen: np.ndarray, measured: np.ndarray, judged: np.ndarray
    ) -> tuple[float, float, float]:
        """By how much a share kept comes nearer to real images than one at random, and what it covers more.

        Args:
            share: the share.
            known: (n, D) real features that influence is measured by.
            unseen: (m, D) real features that the kept images are held against.
            measured: (p, D) features of the images whose influence is measured.
            judged: (q, D) features of the images of which a share is kept.

        Returns:
            The gain in distance, the deviation of that over random sets, and the gain in coverage.
        """
        project, real = self.space.projection.apply, class_moments(self.space, unseen)
        small, rng = project(judged), np.random.default_rng(self.seed)
        values = influence_among_kept(class_moments(self.space, known), project(measured), share).of(small)
        kept = np.argsort(values, kind="stable")[: round(share * len(small))]
        random = [rng.choice(len(small), len(kept), replace=False) for _ in range(_RANDOM_SETS)]
        by_chance = [frechet.frechet_distance(real, frechet.moments(small[r])) for r in random]
        gain = np.mean(by_chance) - frechet.frechet_distance(real, frechet.moments(small[kept]))
        covered = _coverage(unseen, judged[kept]) - np.mean([_coverage(unseen, judged[r]) for r in random])
        return float(gain), float(np.std(by_chance)), float(covered)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        logger.warning("class %r: %s", self.class_name, text)


def class_moments(space: Space, features: np.ndarray) -> frechet.Moments:
    """Return moments of features (n, D) in principal components, shrunk towards the pooled within-class covariance."""
    small = space.projection.apply(features)
    mean = small.mean(0)
    covariance, _ = ledoit_wolf((small - mean) @ space.whitening, assume_centered=True)
    back = np.linalg.inv(space.whitening)
    return frechet.Moments(mean, frechet.positive_definite(back @ covariance @ back), len(small))


def _coverage(real: np.ndarray, synthetic: np.ndarray) -> float:
    if min(len(real), len(synthetic)) <= metrics.NEIGHBOURS:
        return 0.0
    return metrics.neighbourhoods(real, synthetic).coverage
