"""Fitting a class's image filter to its real images and a pool of candidates, check by check."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rebalance.errors import InputError
from rebalance.filtering.checks import REGISTRY
from rebalance.filtering.checks.base import Check, ClassMaterial, FittedCheck
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.filter_options import FilterOptions
from rebalance.filtering.image_filter import ImageFilter, Verdict
from rebalance.filtering.space import Space


@dataclass(frozen=True)
class FittedFilter:
    """A filter, and its verdicts on the pool that it was fitted to.

    Attributes:
        image_filter: the filter.
        pool: verdicts on the pool's images, unbiased: a check that was fitted to the pool leaves out the image itself.
    """

    image_filter: ImageFilter
    pool: tuple[Verdict, ...]


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
    notes: list[str] = []
    material = ClassMaterial(class_name, real, space, pool, None, seed, np.ones(len(pool.features), bool), notes)
    _check_features(material)
    asked = options.ordered()
    fitted: dict[str, FittedCheck] = {}
    for check in (check for check in asked if not check.after_others):
        fit = check.fit(replace(material, limit=options.limit_of(check)))
        if fit is not None:
            fitted[check.name] = fit.check
    first = ImageFilter(class_name, space, fitted)
    verdicts = [first.judge(scores) for scores in first.scores(pool)]
    for check in (check for check in asked if check.after_others):
        _fit_to_survivors(check, replace(material, limit=options.limit_of(check)), fitted, verdicts)
    ordered = {name: fitted[name] for name in REGISTRY if name in fitted}
    return FittedFilter(ImageFilter(class_name, space, ordered, tuple(notes)), tuple(verdicts))


def _check_features(material: ClassMaterial) -> None:
    """Refuse a class of which too little is known, and features that are not finite."""
    name, n_train = material.class_name, len(material.train)
    if n_train < 2:
        raise InputError(f"class {name!r} has too few real images for a filter", value=n_train, allowed="2 or more")
    own = [(name, features) for features in (material.train, material.held_out, material.pool.features)]
    for class_name, features in (*own, *material.real.others.items()):
        if not np.isfinite(features).all():
            raise InputError(f"features of class {class_name!r} contain values that are not finite")


def _fit_to_survivors(
    check: Check, material: ClassMaterial, fitted: dict[str, FittedCheck], verdicts: list[Verdict]
) -> None:
    """Fit a check to the candidates that pass the others; add it to `fitted`, and its reasons to their verdicts."""
    survivors = np.array([verdict.accepted for verdict in verdicts], bool)
    fit = check.fit(replace(material, survivors=survivors))
    if fit is None:
        return
    fitted[check.name] = fit.check
    if fit.survivors_fail is not None:
        for position in np.flatnonzero(survivors)[fit.survivors_fail].tolist():
            verdicts[position] = Verdict((check.name,))
        return
    alone = ImageFilter(material.class_name, material.space, {check.name: fit.check})
    for position, scores in enumerate(alone.scores(material.pool)):
        verdicts[position] = Verdict(verdicts[position].reasons + alone.judge(scores).reasons)
