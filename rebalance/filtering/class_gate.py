"""Fitting the filter of a class, and comparing the pool that passes it with the real images; knows no run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from rebalance.filtering.criteria import Criteria
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.fitting import fit_filter
from rebalance.filtering.image_filter import ImageFilter
from rebalance.filtering.real_moments import RealMoments
from rebalance.filtering.space import Space
from rebalance.measures import frechet
from rebalance.measures.kid import KernelDistance, kernel_distance, kernel_floor
from rebalance.measures.neighbours import NEIGHBOURS, Neighbourhoods, neighbourhoods

# Pairs of halves of the real images behind the floor of KID: its mean is known to about a tenth.
_KID_SPLITS = 20


@dataclass(frozen=True)
class ClassCalibration:
    """Result of calibrating a class, before its first shard.

    Attributes:
        class_name: the class.
        pool: candidates in the pool.
        accepted: those that passed the image filter.
        rejects: the others by their first reason.
        thresholds: limits of the image filter; empty without one.
        fid: distance of the pool's accepted images to the real train images; None when it could not be measured.
        fid_before: the same of the whole pool.
        fid_limit: the distance allowed.
        kid: kernel distance of the accepted images to the real train images.
        kid_floor: the mean size of that between real images, for samples of these sizes.
        kid_limit: the distance allowed.
        neighbourhoods: precision, recall, density and coverage of the accepted images.
        neighbourhoods_before: the same of the whole pool.
        withheld: whether the class gets no slots.
        reason: why it is withheld.
        digest: hash of everything that decides a verdict of the image filter, "" without one.
        image_filter: what each image must pass; None when nothing is asked. Not among the plain values.
        real_moments: what finished images are compared with; None with too few real images. Not among the plain values.
    """

    class_name: str
    pool: int
    accepted: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    fid: frechet.FrechetResult | None = None
    fid_before: float | None = None
    fid_limit: float | None = None
    kid: KernelDistance | None = None
    kid_floor: float | None = None
    kid_limit: float | None = None
    neighbourhoods: Neighbourhoods | None = None
    neighbourhoods_before: Neighbourhoods | None = None
    withheld: bool = False
    reason: str = ""
    digest: str = ""
    image_filter: ImageFilter | None = None
    real_moments: RealMoments | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as plain values, without arrays."""
        values = asdict(replace(self, image_filter=None, real_moments=None))
        return {name: value for name, value in values.items() if name != "real_moments"}

    @classmethod
    def from_json(
        cls, values: dict[str, Any], image_filter: ImageFilter | None, real_moments: RealMoments | None
    ) -> ClassCalibration:
        """Rebuild what `to_json` returned."""
        kinds = {
            "fid": frechet.FrechetResult,
            "kid": KernelDistance,
            "neighbourhoods": Neighbourhoods,
            "neighbourhoods_before": Neighbourhoods,
        }
        built = {name: kind(**values[name]) if values[name] else None for name, kind in kinds.items()}
        return cls(**{**values, **built, "image_filter": image_filter, "real_moments": real_moments})


def calibrate_class(
    class_name: str,
    real: RealFeatures,
    space: Space,
    pool: Evidence,
    criteria: Criteria,
    *,
    floor_draws: int,
    seed: int,
) -> ClassCalibration:
    """Fit a class's image filter to a pool and compare what passes with the real train images.

    Args:
        class_name: the class.
        real: real features.
        space: of `fit_space` on the same.
        pool: p candidates.
        criteria: what is asked.
        floor_draws: pairs of Gaussian sets behind the floor of FD.
        seed: seed of all draws.
    """
    n_pool = len(pool.features)
    result = ClassCalibration(class_name, n_pool)
    train = real.train[class_name]
    if len(train) < 2 and (criteria.max_fid or criteria.max_kid):
        return replace(result, withheld=True, reason=f"{len(train)} real train images are too few to compare with")
    if len(train) < 2:
        note = f"{len(train)} real train images are too few for a filter: every image is kept"
        return replace(result, accepted=n_pool, thresholds={"notes": [note]})
    accepted = np.ones(n_pool, bool)
    if criteria.images.checks:
        fitted = fit_filter(class_name, real, space, pool, criteria.images, seed)
        accepted = np.array([verdict.accepted for verdict in fitted.pool], bool)
        rejects = Counter(verdict.reason for verdict in fitted.pool if not verdict.accepted)
        thresholds = fitted.image_filter.thresholds()
        result = replace(
            result,
            image_filter=fitted.image_filter,
            digest=fitted.image_filter.digest,
            rejects=dict(rejects),
            thresholds=thresholds,
        )
    real_moments = RealMoments(space.projection, frechet.moments(space.projection.apply(train)))
    result = replace(result, accepted=int(accepted.sum()), real_moments=real_moments)
    if result.accepted < 2:
        reason = f"{result.accepted} of {n_pool} candidates passed the image filter"
        return replace(result, withheld=True, reason=reason)
    result = _with_distances(result, space, train, pool.features, accepted, floor_draws, seed)
    return _within_limits(result, len(train), criteria)


def _with_distances(
    result: ClassCalibration,
    space: Space,
    train: np.ndarray,
    pool: np.ndarray,
    accepted: np.ndarray,
    draws: int,
    seed: int,
) -> ClassCalibration:
    """Add the distances of the accepted images, features (p, D) where `accepted` (p,), to the train images (n, D)."""
    small_train, small_pool = space.projection.apply(train), space.projection.apply(pool)
    fid = frechet.compare(small_train, small_pool[accepted], draws=draws, seed=seed)
    before = frechet.frechet_distance(frechet.moments(small_train), frechet.moments(small_pool))
    result = replace(result, fid=fid, fid_before=before)
    if min(len(train), result.accepted) <= NEIGHBOURS:
        return result
    return replace(
        result,
        kid=kernel_distance(train, pool[accepted], seed),
        kid_floor=kernel_floor(train, result.accepted, _KID_SPLITS, seed),
        neighbourhoods=neighbourhoods(train, pool[accepted]),
        neighbourhoods_before=neighbourhoods(train, pool),
    )


def _within_limits(result: ClassCalibration, n_train: int, criteria: Criteria) -> ClassCalibration:
    """Add the limits on the distances, and withhold the class where one is exceeded."""
    reasons: list[str] = []
    if criteria.max_fid and result.fid is not None:
        limit, distance = criteria.max_fid.limit(result.fid.floor), result.fid.distance
        result = replace(result, fid_limit=limit)
        if distance > limit:
            reasons.append(f"FD {distance:.4g} is above {limit:.4g}")
    if criteria.max_kid:
        if result.kid is None or result.kid_floor is None:
            least = NEIGHBOURS + 1
            reasons.append(f"a KID needs {least} images a side, there are {n_train} and {result.accepted}")
        else:
            limit, value = criteria.max_kid.limit(result.kid_floor), result.kid.value
            result = replace(result, kid_limit=limit)
            if value > limit:
                reasons.append(f"KID {value:.4g} is above {limit:.4g}")
    return replace(result, withheld=bool(reasons), reason="; ".join(reasons))


def filters_of(calibrations: Sequence[ClassCalibration]) -> dict[str, ImageFilter]:
    """Return the image filters by class, of classes that have one."""
    return {c.class_name: c.image_filter for c in calibrations if c.image_filter is not None}


def real_moments_of(calibrations: Sequence[ClassCalibration]) -> dict[str, RealMoments]:
    """Return the real moments by class, of classes that have one."""
    return {c.class_name: c.real_moments for c in calibrations if c.real_moments is not None}
