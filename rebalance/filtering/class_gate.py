"""Fitting the filter of a class and holding the pool that passes it against the real images; knows no run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from rebalance import frechet, metrics
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.fitting import fit_filter
from rebalance.filtering.gates import Gates
from rebalance.filtering.image_filter import ImageFilter, Space
from rebalance.filtering.store import digest
from rebalance.filtering.yardstick import Yardstick

_KID_SPLITS = 20


@dataclass(frozen=True)
class ClassCalibration:
    """What was found on a class before its first shard.

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
        yardstick: what finished images are held against; None with too few real images. Not among the plain values.
    """

    class_name: str
    pool: int
    accepted: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    fid: frechet.FrechetResult | None = None
    fid_before: float | None = None
    fid_limit: float | None = None
    kid: metrics.KernelDistance | None = None
    kid_floor: float | None = None
    kid_limit: float | None = None
    neighbourhoods: metrics.Neighbourhoods | None = None
    neighbourhoods_before: metrics.Neighbourhoods | None = None
    withheld: bool = False
    reason: str = ""
    digest: str = ""
    image_filter: ImageFilter | None = None
    yardstick: Yardstick | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as plain values, without arrays."""
        values = asdict(replace(self, image_filter=None, yardstick=None))
        return {name: value for name, value in values.items() if name != "yardstick"}

    @classmethod
    def from_json(
        cls, values: dict[str, Any], image_filter: ImageFilter | None, yardstick: Yardstick | None
    ) -> ClassCalibration:
        """Rebuild what `to_json` returned."""
        kinds = {
            "fid": frechet.FrechetResult,
            "kid": metrics.KernelDistance,
            "neighbourhoods": metrics.Neighbourhoods,
            "neighbourhoods_before": metrics.Neighbourhoods,
        }
        built = {name: kind(**values[name]) if values[name] else None for name, kind in kinds.items()}
        return cls(**{**values, **built, "image_filter": image_filter, "yardstick": yardstick})


def calibrate_class(
    class_name: str,
    real: RealFeatures,
    space: Space,
    pool: Evidence,
    gates: Gates,
    *,
    floor_draws: int,
    seed: int,
) -> ClassCalibration:
    """Fit a class's image filter to a pool and hold what passes against the real train images.

    Args:
        class_name: the class.
        real: real features.
        space: of `fit_space` on the same.
        pool: p candidates.
        gates: what is asked.
        floor_draws: pairs of Gaussian sets behind the floor of FD.
        seed: seed of all draws.
    """
    n_pool = len(pool.features)
    result = ClassCalibration(class_name, n_pool)
    train = real.train[class_name]
    if len(train) < 2 and (gates.max_fid or gates.max_kid):
        return replace(result, withheld=True, reason=f"{len(train)} real train images are too few to compare with")
    if len(train) < 2:
        note = f"{len(train)} real train images are too few for a filter: every image is kept"
        return replace(result, accepted=n_pool, thresholds={"notes": [note]})
    accepted = np.ones(n_pool, bool)
    if gates.images.checks:
        found = fit_filter(class_name, real, space, pool, gates.images, seed)
        accepted = np.array([verdict.accepted for verdict in found.pool], bool)
        rejects = Counter(verdict.reason for verdict in found.pool if not verdict.accepted)
        thresholds = found.image_filter.thresholds()
        result = replace(
            result,
            image_filter=found.image_filter,
            digest=digest(found.image_filter),
            rejects=dict(rejects),
            thresholds=thresholds,
        )
    yardstick = Yardstick(space.projection, frechet.moments(space.projection.apply(train)))
    result = replace(result, accepted=int(accepted.sum()), yardstick=yardstick)
    if result.accepted < 2:
        reason = f"{result.accepted} of {n_pool} candidates passed the image filter"
        return replace(result, withheld=True, reason=reason)
    return _held_against(result, train, space, pool.features, accepted, gates, floor_draws, seed)


def _held_against(
    result: ClassCalibration,
    train: np.ndarray,
    space: Space,
    pool: np.ndarray,
    accepted: np.ndarray,
    gates: Gates,
    floor_draws: int,
    seed: int,
) -> ClassCalibration:
    small_train, small_pool = space.projection.apply(train), space.projection.apply(pool)
    fid = frechet.compare(small_train, small_pool[accepted], draws=floor_draws, seed=seed)
    before = frechet.frechet_distance(frechet.moments(small_train), frechet.moments(small_pool))
    result = replace(result, fid=fid, fid_before=before)
    if min(len(train), result.accepted) > metrics.NEIGHBOURS:
        kid = metrics.kernel_distance(train, pool[accepted], seed)
        floor = metrics.kernel_floor(train, result.accepted, _KID_SPLITS, seed)
        near = (metrics.neighbourhoods(train, features) for features in (pool[accepted], pool))
        result = replace(result, kid=kid, kid_floor=floor, neighbourhoods=next(near), neighbourhoods_before=next(near))
    reasons: list[str] = []
    if gates.max_fid:
        limit = gates.max_fid.limit(fid.floor)
        result = replace(result, fid_limit=limit)
        if fid.distance > limit:
            reasons.append(f"FD {fid.distance:.4g} is above {limit:.4g}")
    if gates.max_kid:
        if result.kid is None or result.kid_floor is None:
            least = metrics.NEIGHBOURS + 1
            reasons.append(f"a KID needs {least} images a side, there are {len(train)} and {result.accepted}")
        else:
            limit = gates.max_kid.limit(result.kid_floor)
            result = replace(result, kid_limit=limit)
            if result.kid.value > limit:
                reasons.append(f"KID {result.kid.value:.4g} is above {limit:.4g}")
    return replace(result, withheld=bool(reasons), reason="; ".join(reasons))


def filters_of(calibrations: Sequence[ClassCalibration]) -> dict[str, ImageFilter]:
    """Return the image filters by class, of classes that have one."""
    return {c.class_name: c.image_filter for c in calibrations if c.image_filter is not None}


def yardsticks_of(calibrations: Sequence[ClassCalibration]) -> dict[str, Yardstick]:
    """Return the yardsticks by class, of classes that have one."""
    return {c.class_name: c.yardstick for c in calibrations if c.yardstick is not None}
