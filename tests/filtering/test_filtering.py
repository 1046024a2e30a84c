"""The filter of single images and the gates of classes, on features whose truth is known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from toys import write_classes

from rebalance import filtering, storage
from rebalance.config import FilteringOptions
from rebalance.errors import InputError
from rebalance.filtering import (
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    OUTLIER,
    ClassCalibration,
    Criteria,
    Evidence,
    FilterOptions,
    ImageFilter,
    RealFeatures,
    Threshold,
    calibrate_class,
    check_names,
    checks,
    fit_filter,
    fit_space,
    measuring,
    read_calibrations,
    write_calibrations,
)
from rebalance.filtering.calibration_store import problems
from rebalance.filtering.checks.base import Check, ClassMaterial, Fit, FittedCheck, Limit, ScoredBatch, StoredCheck
from rebalance.filtering.checks.outlier import texture
from rebalance.filtering.limits import limit_of_next
from rebalance.filtering.near_copies import copies_of
from rebalance.filtering.train_features import TrainFeatures, fit_train_features
from rebalance.index import ImageIndex, build_index, carve_validation
from rebalance.measures import class_probe
from rebalance.measures.class_probe import fit_probe, held_out_confidence
from rebalance.measures.kid import kernel_distance, kernel_floor
from rebalance.measures.neighbours import neighbourhoods

pytestmark = pytest.mark.usefixtures("one_thread")

D = 24
MIXING = np.random.default_rng(0).standard_normal((D, D)) / np.sqrt(D)
CENTRES = {"a": np.zeros(D), "b": np.full(D, 2.0), "poor": np.full(D, -2.0)}


def of_class(name: str, n: int, seed: int, spread: float = 1.0) -> np.ndarray:
    draws = np.random.default_rng((seed, *name.encode())).standard_normal((n, D))
    return (CENTRES[name] + draws @ MIXING * spread).astype(np.float32)


def real(n_poor: int = 150, n_held_out: int = 60) -> RealFeatures:
    train = {"a": of_class("a", 300, 1), "b": of_class("b", 200, 1), "poor": of_class("poor", n_poor, 1)}
    return RealFeatures(train, {"poor": of_class("poor", n_held_out, 2)})


def filter_options(checks: Sequence[str] | None = None, **limits: float) -> FilterOptions:
    return FilterOptions(check_names() if checks is None else tuple(checks), limits)


def fitted(pool: np.ndarray, features: RealFeatures | None = None, **options: object) -> ImageFilter:
    features = features or real()
    space = fit_space(features, 16, 200, 0)
    return fit_filter("poor", features, space, Evidence(pool), filter_options(**options), 0).image_filter


def failed(found: ImageFilter, features: np.ndarray) -> list[tuple[str, ...]]:
    return [found.judge(scores).reasons for scores in found.scores(Evidence(features))]


def share_failing(found: ImageFilter, features: np.ndarray, check: str) -> float:
    return float(np.mean([check in reasons for reasons in failed(found, features)]))


def test_real_images_that_nobody_has_seen_pass():
    found = fitted(of_class("poor", 400, 3))
    fresh = of_class("poor", 2000, 4)
    assert share_failing(found, fresh, OUTLIER) < 0.08  # the 99th percentile of 150 images is not well known
    assert share_failing(found, fresh, LOW_CONFIDENCE) < 0.12
    assert share_failing(found, fresh, MEMORISED) < 0.06


def test_a_pair_of_real_images_that_are_nearly_the_same_sets_no_limit_on_similarity():
    """Student's prediction is hardly moved by one of sixty; the largest value would let copies pass."""
    clean, train = real(), real().train["poor"]
    twin = RealFeatures(clean.train, {"poor": np.concatenate([clean.held_out["poor"][:-1], train[:1] * 1.001])})
    limits = [
        fitted(of_class("poor", 200, 3), features, checks=(MEMORISED,)).thresholds()["max_similarity"]
        for features in (clean, twin)
    ]
    assert limits[1] == pytest.approx(limits[0], abs=0.02) and limits[1] < 0.99
    assert (
        share_failing(fitted(of_class("poor", 200, 3), twin, checks=(MEMORISED,)), train[5:9] * 1.001, MEMORISED) == 1
    )


def test_real_images_that_are_all_the_same_are_no_copies_of_each_other_but_of_themselves():
    train = np.ones((5, D), np.float32) * 3
    features = RealFeatures({**real().train, "poor": train}, {}, {"poor": train[None]})
    found = fitted(of_class("poor", 200, 3), features, checks=(MEMORISED,))
    assert share_failing(found, of_class("poor", 200, 4), MEMORISED) == 0


def few_real(seed: int, n: int, per_class: int) -> tuple[RealFeatures, Callable[[int], np.ndarray]]:
    """A class of n among two of so many, in 64 dimensions: most of the pooled covariance is known from few images."""
    rng = np.random.default_rng((seed, n))
    scales, turn = np.arange(1, 65.0) ** -0.5, np.linalg.qr(rng.standard_normal((64, 64)))[0]
    centres = dict(zip(("a", "b", "poor"), rng.standard_normal((3, 64)) * scales * 1.5 @ turn, strict=True))

    def draw(m: int, name: str = "poor") -> np.ndarray:
        return (centres[name] + (rng.standard_normal((m, 64)) * scales) @ turn).astype(np.float32)

    return RealFeatures({"a": draw(per_class, "a"), "b": draw(per_class, "b"), "poor": draw(n)}, {}), draw


@pytest.mark.parametrize(("n", "per_class"), [(40, 60), (40, 200), (54, 40)])
def test_few_real_images_do_not_make_outliers_of_the_next_ones(n, per_class):
    """The pooled covariance has seen each of them: where it is not taken out of it, a quarter and more are rejected."""
    rates, found = [], []
    for seed in range(6):
        features, draw = few_real(seed, n, per_class)
        space = fit_space(features, 64, 200, seed)
        fitted = fit_filter("poor", features, space, Evidence(draw(50)), FilterOptions((OUTLIER,)), seed).image_filter
        rates.append(share_failing(fitted, draw(300), OUTLIER))
        fresh, directions = draw(100), np.random.default_rng(seed).standard_normal((100, 64))
        deviation = draw(400).std(0)
        far = fresh + 6 * deviation * np.sqrt(64) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        found.append(share_failing(fitted, far.astype(np.float32), OUTLIER))
    assert np.mean(rates) <= 0.05 and max(rates) <= 0.1
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("n", [2, 5, 20, 40, 98, 99, 300])
def test_a_limit_holds_for_the_next_value(n):
    rng = np.random.default_rng(n)
    above = [np.mean(rng.standard_normal(200) > limit_of_next(rng.standard_normal(n), 0.99, 1.0)) for _ in range(200)]
    assert 0.001 < np.mean(above) < 0.016, "1% of the next values, on average over what the limit was set by"
    heavy = [np.mean(rng.standard_t(4, 200) > limit_of_next(rng.standard_t(4, n), 0.99, 1.0)) for _ in range(200)]
    assert np.mean(heavy) < 0.035


def test_outliers_of_a_timid_generator_go():
    """The spread is 0.6 of the real one, where influence alone would welcome far images; a tenth lies at 6 sigma."""
    timid = of_class("poor", 900, 3, spread=0.6)
    directions = np.random.default_rng(5).standard_normal((100, D))
    far = CENTRES["poor"] + 6 * (directions @ MIXING) / np.linalg.norm(directions, axis=1, keepdims=True) * np.sqrt(D)
    pool = np.concatenate([timid[:450], far[:50]]).astype(np.float32)
    found = fitted(pool)
    assert share_failing(found, far[50:], OUTLIER) > 0.99
    assert share_failing(found, timid[450:], OUTLIER) < 0.02


def test_images_of_another_class_are_not_confident():
    found = fitted(of_class("poor", 400, 3))
    assert share_failing(found, of_class("b", 200, 9), LOW_CONFIDENCE) > 0.99


def test_near_copies_of_train_images_are_memorised():
    features = real()
    found = fitted(of_class("poor", 400, 3), features)
    noise = np.random.default_rng(1).standard_normal((150, D)) * 0.02
    assert share_failing(found, features.train["poor"] + noise, MEMORISED) > 0.99


def train_features_of(n: int, kinds: int, d: int = 96) -> tuple[TrainFeatures, np.ndarray]:
    rng = np.random.default_rng(n)
    train = rng.standard_normal((n, d)).astype(np.float32)
    copies = train + 0.2 * rng.standard_normal((kinds, n, d)).astype(np.float32)
    return fit_train_features(train, copies if kinds else None, np.zeros(d, np.float32), 0), train


@pytest.mark.parametrize(("n", "kinds"), [(2, 0), (3, 2), (5, 0), (40, 6), (300, 1)])
def test_the_most_similar_row_is_found_where_an_image_is_near_one(n, kinds):
    rows, train = train_features_of(n, kinds)
    images = train + 0.3 * np.random.default_rng(1).standard_normal(train.shape).astype(np.float32)
    cosines = images @ rows.rows.astype(np.float32).T / np.linalg.norm(images, axis=1)[:, None]
    np.testing.assert_allclose(rows.similarity(images, images @ rows.axes), cosines.max(1), atol=1e-3)
    itself = rows.similarity(train, train @ rows.axes)
    assert (itself > 1 - 1e-6).all(), "the same image can be told from a copy"


@pytest.mark.parametrize(("n", "kinds"), [(2, 0), (3, 1), (41, 6)])
def test_rows_of_the_image_itself_are_left_out(n, kinds):
    rows, train = train_features_of(n, kinds)
    own = np.arange(n)[:, None] + np.arange(0, len(rows.rows), n)
    found = rows.similarity(train, train @ rows.axes, own)
    cosines = train @ rows.rows.astype(np.float32).T / np.linalg.norm(train, axis=1)[:, None]
    np.put_along_axis(cosines, own, -1.0, axis=1)
    assert (found < 0.7).all() and (found <= cosines.max(1) + 1e-3).all()
    assert n > 9 or np.allclose(found, cosines.max(1), atol=1e-3)


def test_copies_that_were_moved_or_flipped_are_memorised():
    features = real()
    other = {"poor": of_class("poor", 150, 77)[None]}
    found = fitted(of_class("poor", 400, 3), replace(features, copies=other))
    assert share_failing(found, other["poor"][0], MEMORISED) == 1
    assert share_failing(found, of_class("poor", 500, 4), MEMORISED) < 0.06
    few = RealFeatures({**features.train, "poor": of_class("poor", 40, 1)}, {}, {"poor": of_class("poor", 40, 1)[None]})
    assert fitted(of_class("poor", 400, 3), few).thresholds()["max_similarity"] < 0.99, (
        "an image's own copies are no neighbours"
    )


def test_near_copies_are_what_they_are_called():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    copies = list(copies_of(pixels))
    assert all(copy.shape == pixels.shape and copy.dtype == np.uint8 for copy in copies)
    assert np.array_equal(copies[0][:, :, ::-1], pixels) and np.array_equal(copies[1][:, 1:], pixels[:, :-1])
    assert 0 < np.abs(copies[-1].astype(int) - pixels).mean() < 40


def test_noise_is_rough_and_blur_is_smooth():
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 16)[None, :, None, None] * np.ones((20, 1, 16, 3))
    own = smooth + rng.normal(0, 8, smooth.shape)
    features = replace(real(), measured={"texture": {"poor": texture(own.clip(0, 255).astype(np.uint8))}})
    pool = of_class("poor", 200, 3)
    space = fit_space(features, 16, 200, 0)
    found = fit_filter("poor", features, space, Evidence(pool), FilterOptions((OUTLIER,)), 0).image_filter
    for noise, rejected in ((8, False), (60, True), (0, True)):
        images = (smooth + rng.normal(0, noise, smooth.shape)).clip(0, 255).astype(np.uint8)
        scores = found.scores(
            Evidence(of_class("poor", 20, 8) * 0 + features.train["poor"].mean(0), {"texture": texture(images)})
        )
        assert np.mean([not found.judge(s).accepted for s in scores]) == pytest.approx(float(rejected), abs=0.06)


@pytest.mark.parametrize(("n_poor", "n_held_out"), [(150, 60), (40, 0)])
def test_influence_brings_a_shifted_set_nearer_than_chance_does(n_poor, n_held_out):
    """Also where nothing is held out and the share is chosen by halves of the train images."""

    def shifted(seed: int) -> np.ndarray:
        half = of_class("poor", 300, seed)
        return np.concatenate([half, of_class("poor", 300, seed + 1) + 0.8]).astype(np.float32)

    features = real(n_poor, n_held_out)
    found = fitted(shifted(10), features, checks=(INFLUENCE,))
    candidates, held_out = shifted(20), of_class("poor", 600, 30)
    kept = candidates[[not reasons for reasons in failed(found, candidates)]]
    chance = candidates[np.random.default_rng(0).choice(len(candidates), len(kept), replace=False)]
    assert 0.3 < len(kept) / len(candidates) < 0.8
    assert kernel_distance(held_out, kept).value < 0.6 * kernel_distance(held_out, chance).value
    loss = neighbourhoods(held_out, chance).coverage - neighbourhoods(held_out, kept).coverage
    assert loss < 0.05


@pytest.mark.parametrize(("n_train", "n_held_out"), [(800, 600), (100, 100), (60, 0)])
def test_nothing_is_dropped_for_influence_from_images_like_the_real_ones(n_train, n_held_out):
    """Where no share brings the pool nearer than chance does, all are kept, or nearly."""
    features = real(n_train, n_held_out)
    assert fitted(of_class("poor", 500, 3), features).thresholds()["keep"] >= 0.8


@pytest.mark.parametrize(
    ("options", "check", "least", "most"),
    [({"keep": 0.3}, INFLUENCE, 0.6, 0.8), ({"min_confidence": 1.0}, LOW_CONFIDENCE, 0.9, 1.0),
     ({"max_similarity": -1.0}, MEMORISED, 1.0, 1.0), ({"max_similarity": 1.0}, MEMORISED, 0.0, 0.0)],
)  # fmt: skip
def test_limits_that_are_given_replace_the_calibrated_ones(options, check, least, most):
    found = fitted(of_class("poor", 400, 3), checks=(check,), **options)
    assert least <= share_failing(found, of_class("poor", 400, 6), check) <= most


def test_only_the_checks_that_are_asked_are_scored():
    for check in check_names():
        found = fitted(of_class("poor", 200, 3), checks=(check,))
        (scores,) = found.scores(Evidence(of_class("poor", 1, 5)))
        measured = {name for name, value in scores.items() if value != -1}
        assert measured == {
            {OUTLIER: "outlier", LOW_CONFIDENCE: "confidence", MEMORISED: "similarity"}.get(check, check)
        }


def test_the_first_failed_check_is_the_reason_and_all_are_told():
    found = fitted(of_class("poor", 400, 3))
    (verdict,) = [found.judge(scores) for scores in found.scores(Evidence(of_class("b", 1, 5) * 9))]
    assert verdict.reason == OUTLIER and verdict.reasons[:2] == (OUTLIER, LOW_CONFIDENCE) and not verdict.accepted


def test_a_score_depends_on_its_image_alone():
    found, images = fitted(of_class("poor", 400, 3)), of_class("poor", 40, 5)
    together = found.scores(Evidence(images))
    assert [scores for image in images for scores in found.scores(Evidence(image[None]))] == together
    assert found.scores(Evidence(images[::-1])) == together[::-1]
    assert found.scores(Evidence(images[3:36])) == together[3:36]


def test_too_few_held_out_images_are_said(caplog):
    found = fitted(of_class("poor", 400, 3), real(n_poor=20, n_held_out=4))
    assert "4 held-out and 20 train images are too few: influence is not asked" in found.notes
    assert "4 held-out images are too few: memorised is judged by train images" in found.notes
    assert "20 train images are too few to count: the limits on outliers are predicted" in found.notes
    assert "class 'poor'" in caplog.text and found.thresholds()["keep"] is None
    fresh = of_class("poor", 1000, 4)
    assert share_failing(found, fresh, INFLUENCE) == 0
    more = fitted(of_class("poor", 400, 3), real(n_poor=40, n_held_out=4))
    assert "4 held-out images are too few: the share to keep is chosen by halves of the train ones" in more.notes
    assert share_failing(more, fresh, MEMORISED) < 0.25
    assert not fitted(of_class("poor", 400, 3)).notes


def test_a_share_that_is_given_is_kept_whatever_is_known():
    features = real(n_poor=40, n_held_out=0)
    found = fitted(of_class("poor", 40, 3), features, checks=(INFLUENCE,), keep=0.5)
    assert 0.3 < share_failing(found, of_class("poor", 400, 4), INFLUENCE) < 0.7


def test_about_the_share_that_is_asked_for_is_kept_of_a_pool_hardly_larger_than_its_dimensions():
    kept = []
    for seed in range(6):
        features, draw = few_real(seed, 200, 200)
        pool, space = draw(60) * 0.9, fit_space(features, 64, 200, seed)
        options = FilterOptions((INFLUENCE,), {"keep": 0.5})
        found = fit_filter("poor", features, space, Evidence(pool), options, seed).image_filter
        kept.append(1 - share_failing(found, draw(400) * np.float32(0.9), INFLUENCE))
    assert 0.44 < np.mean(kept) < 0.56, "0.41 where a fifth of the pool is left out at once"


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_few_real_images_do_not_make_everything_an_outlier_or_a_copy(n):
    """Near copies are as near as they are in truth: far nearer than another image of the class."""
    train = of_class("poor", n, 1)
    copies = train[None] + np.random.default_rng(0).standard_normal((4, n, D)).astype(np.float32) * 0.2
    features = RealFeatures({**real().train, "poor": train}, {}, {"poor": copies})
    found = fitted(of_class("poor", 200, 3), features, checks=(OUTLIER, MEMORISED))
    fresh = of_class("poor", 500, 4)
    assert share_failing(found, fresh, OUTLIER) < 0.5 and share_failing(found, of_class("b", 100, 4) * 4, OUTLIER) > 0.9
    assert share_failing(found, fresh, MEMORISED) < 0.1 and share_failing(found, train + 0.01, MEMORISED) == 1


def test_a_single_real_image_lets_all_pass_and_says_so(features, space):
    one = RealFeatures({**features.train, "poor": features.train["poor"][:1]}, {})
    found = calibrated(Criteria(FilterOptions()), one, space)
    assert not found.withheld and found.accepted == 300 and found.image_filter is None
    assert "1 real train images are too few for a filter" in found.thresholds["notes"][0]


def test_more_dimensions_than_images_work():
    features = real(n_poor=5, n_held_out=0)
    found = fitted(of_class("poor", 200, 3), features, checks=(OUTLIER, MEMORISED))
    assert (
        np.isfinite(found.thresholds()["max_distance"])
        and share_failing(found, of_class("b", 100, 5) * 5, OUTLIER) > 0.9
    )


def test_a_class_whose_images_are_all_the_same_has_a_filter():
    features = RealFeatures({**real().train, "poor": np.repeat(of_class("poor", 1, 1), 20, 0)}, {})
    found = fitted(of_class("poor", 200, 3), features, checks=(OUTLIER, LOW_CONFIDENCE, MEMORISED))
    assert all(
        np.isfinite([s["outlier"], s["confidence"], s["similarity"]]).all()
        for s in found.scores(Evidence(of_class("poor", 9, 4)))
    )


def test_the_methods_own_confidence_joins_the_classifier():
    features = real()
    space, pool = fit_space(features, 16, 200, 0), of_class("poor", 200, 3)
    features = replace(features, confidence={"poor": np.linspace(0.6, 1, 60)})
    options, own = FilterOptions((LOW_CONFIDENCE,)), np.full(200, 0.9)
    found = fit_filter("poor", features, space, Evidence(pool, confidence=own), options, 0).image_filter
    assert found.thresholds()["min_confidence"] == 0.5, "no more than an even chance is asked for"
    low, high = found.scores(Evidence(pool[:2], confidence=np.array([0.1, 0.8])))
    assert low["confidence"] == pytest.approx(np.sqrt(0.1 * space.probe.confidence(pool[:1], "poor")[0]), abs=1e-6)
    assert not found.judge(low).accepted and found.judge(high).accepted
    foreign = Evidence(of_class("b", 50, 3), confidence=np.full(50, 0.99))
    assert not any(found.judge(scores).accepted for scores in found.scores(foreign)), "the classifier has its say"


def limit(pool: Evidence | None = None, **known: object) -> float:
    """The least confidence, where other classes are known."""
    pool, features = pool or Evidence(of_class("poor", 200, 3)), replace(real(), **known)
    space = fit_space(features, 16, 200, 0)
    options = FilterOptions((LOW_CONFIDENCE,))
    return fit_filter("poor", features, space, pool, options, 0).image_filter.thresholds()["min_confidence"]


def others(near: int = 0, n: int = 40) -> dict[str, np.ndarray]:
    """Val images of the other classes, of which some of one look like the poor class."""
    b = np.concatenate([of_class("poor", near, 9), of_class("b", n - near, 5)])
    return {"a": of_class("a", n, 5), "b": b, "poor": of_class("poor", n, 5)}


def test_a_class_far_from_others_asks_for_no_more_confidence_than_tells_them_apart():
    assert limit() == 0.5 and limit(others=others()) < 0.3, "in the middle, in log-odds"
    features = replace(real(), others=others())
    found = fitted(of_class("poor", 200, 3), features)
    foreign = np.concatenate([of_class(name, 200, 6) for name in "ab"])
    assert share_failing(found, foreign, LOW_CONFIDENCE) > 0.98
    assert limit(others=others(n=10)) == 0.5, "20 images of others are too few"


@pytest.mark.parametrize(("near", "expected"), [(3, False), (4, True)])
def test_the_nearest_class_decides_by_nine_in_ten_of_its_images(near, expected):
    known = others(near)
    for number in range(60):
        known[f"far {number}"] = of_class("a", 40, number)
    train = {name: of_class("a", 5, 1) for name in known if name.startswith("far")}
    train |= real().train
    assert (limit(train=train, others=known) == limit(train=train)) == expected, "4 of 40"


def test_a_class_without_val_images_is_asked_by_classifiers_that_have_not_seen_it():
    twin = {**real().train, "twin": of_class("poor", 9, 8)}
    known = {name: of_class(name, 40, 5) for name in "ab"}
    assert limit(train=twin, others=known) == limit(train=twin), "it looks like this one"
    far = {**real().train, "far": of_class("a", 9, 8)}
    assert limit(train=far, others=known) < limit(train=far)
    single = {**real().train, "single": of_class("poor", 1, 8)}
    assert limit(train=single, others=known) < limit(train=single), "without it no classifier knows it"


def test_the_methods_confidence_in_others_joins_the_classifiers():
    pool = Evidence(of_class("poor", 200, 3), confidence=np.full(200, 0.9))
    known, confidence = others(), {"poor": np.full(60, 0.9)}

    def by_method(value: float) -> dict[str, dict[str, np.ndarray]]:
        return {"poor": {name: np.full(40, value) for name in known}}

    sure, unsure = (limit(pool, confidence=confidence, others=known, others_confidence=by_method(v)) for v in (1, 1e-4))
    assert unsure < sure / 3 < 0.5
    assert limit(pool, confidence=confidence, others=known) == 0.5, "what is not there is not asked"


def test_a_limit_on_similarity_is_that_of_the_next_image_where_few_are_held_out():
    train, pool = {**real().train, "poor": of_class("poor", 40, 1)}, of_class("poor", 400, 3)
    far = train["poor"] + 5 * np.random.default_rng(0).standard_normal((40, D)).astype(np.float32)
    without, beside = (
        fitted(pool, RealFeatures(train, {}, c)).thresholds()["max_similarity"] for c in ({}, {"poor": far[None]})
    )
    assert beside == pytest.approx(without, abs=1e-4), "copies that are like nothing change nothing"
    centred = train["poor"] - fit_space(real(), 16, 200, 0).projection.centre
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert without > (unit @ unit.T - 2 * np.eye(40)).max(), "more than the largest of so few"


@dataclass(frozen=True)
class RowView:
    """Images whose features are their rows; the method's confidence is the row too."""

    index: ImageIndex
    extractor: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(batch=32))

    def features(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, None].astype(np.float32)

    def pixels(self, row: int) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def confidences(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: rows.astype(np.float64) for name in names if name == "poor"}


def test_some_val_images_of_every_class_are_looked_at_for_how_sure_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_OTHERS", 20)
    write_classes(tmp_path, {"a": 100, "b": 40, "poor": 40, "poorer": 20, "single": 1})
    index = carve_validation(build_index(tmp_path), 0.2, 0)
    targets = ("poor", "poorer")
    found = filtering.real_evidence(RowView(index), Criteria(FilterOptions((LOW_CONFIDENCE,))), targets, 0)
    assert {name: len(rows) for name, rows in found.others.items()} == {"a": 5, "b": 5, "poor": 5, "poorer": 4}
    for name, rows in found.others.items():
        assert set(rows[:, 0]) <= set(index.rows("val", name))
    assert list(found.others_confidence) == ["poor"], "of the other class the method cannot tell"
    for name, rows in found.others.items():
        np.testing.assert_array_equal(found.others_confidence["poor"][name], rows[:, 0])
    for without in (FilterOptions((OUTLIER,)), FilterOptions((LOW_CONFIDENCE,), {"min_confidence": 0.3})):
        assert filtering.real_evidence(RowView(index), Criteria(without), targets, 0).others == {}


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_real_images_withhold_the_class(n):
    features = RealFeatures({**real().train, "poor": of_class("poor", n, 1)}, {})
    with pytest.raises(InputError, match="'poor' has too few real images"):
        fitted(of_class("poor", 100, 3), features)
    space = fit_space(features, 8, 100, 0)
    found = calibrated(Criteria(FilterOptions(), max_fid=Threshold(3, True)), features, space)
    assert found.withheld and "too few" in found.reason


@pytest.mark.parametrize("part", ["train", "held_out", "pool"])
def test_features_that_are_not_finite_are_refused(part):
    features, pool = real(), of_class("poor", 100, 3)
    broken = {"train": features.train["poor"], "held_out": features.held_out["poor"], "pool": pool}[part]
    space = fit_space(features, 8, 100, 0)
    broken[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        fit_filter("poor", features, space, Evidence(pool), FilterOptions(), 0)


def test_unknown_checks_are_refused():
    with pytest.raises(InputError, match="allowed: outlier, low_confidence, memorised, influence"):
        FilterOptions(("pretty",))


def calibrated(criteria: Criteria, features: RealFeatures, space: filtering.Space) -> ClassCalibration:
    pool = Evidence(of_class("poor", 300, 3, spread=1.3))
    return calibrate_class("poor", features, space, pool, criteria, floor_draws=3, seed=0)


@pytest.fixture(scope="module")
def features() -> RealFeatures:
    return real()


@pytest.fixture(scope="module")
def space(features):
    return fit_space(features, 16, 200, 0)


def test_a_calibration_tells_what_the_filter_does_to_the_pool(features, space):
    found = calibrated(Criteria(FilterOptions()), features, space)
    assert found.pool == 300 == found.accepted + sum(found.rejects.values())
    assert set(found.rejects) <= set(check_names()) and not found.withheld
    assert found.fid.distance < found.fid_before
    assert found.neighbourhoods.precision >= found.neighbourhoods_before.precision
    assert json.loads(json.dumps(found.to_json()))["thresholds"]["keep"] == found.thresholds["keep"]


@pytest.mark.parametrize(
    ("gates", "reason"),
    [
        (Criteria(max_fid=Threshold(1e-6, False)), "FD .* is above 1e-06"),
        (Criteria(max_kid=Threshold(1e-9, False)), "KID .* is above 1e-09"),
        (Criteria(max_fid=Threshold(1e-6, True), max_kid=Threshold(1e-9, True)), "FD .* KID"),
        (Criteria(FilterOptions((LOW_CONFIDENCE,), {"min_confidence": 1.0})), "of 300 candidates passed"),
        (Criteria(max_fid=Threshold(1e6, True), max_kid=Threshold(1e6, True)), ""),
    ],
)
def test_gates_withhold_a_class_and_say_why(features, space, gates, reason):
    found = calibrated(gates, features, space)
    assert found.withheld == bool(reason)
    if reason:
        assert __import__("re").search(reason, found.reason)


def test_a_kid_gate_on_too_few_images_withholds_the_class(space, features):
    few = RealFeatures({**features.train, "poor": features.train["poor"][:5]}, {})
    found = calibrated(Criteria(max_kid=Threshold(3, True)), few, space)
    assert found.withheld and found.reason == "a KID needs 6 images a side, there are 5 and 300"


def stored_filter(name: str, features: RealFeatures, space: filtering.Space, criteria: Criteria) -> ClassCalibration:
    return calibrate_class(name, features, space, Evidence(of_class(name, 300, 3)), criteria, floor_draws=3, seed=0)


def test_calibrations_are_the_same_after_they_were_stored(features, space, tmp_path, caplog):
    some = Criteria(FilterOptions((OUTLIER, MEMORISED)))
    mine = {"poor": stored_filter("poor", features, space, Criteria(FilterOptions()))}
    mine["b"] = stored_filter("b", features, space, some)
    mine["a"] = stored_filter("a", features, space, Criteria(max_fid=Threshold(1e6, True)))
    path = tmp_path / "calibration.json"
    write_calibrations(path, "key", "features", 0, mine)
    read, images = read_calibrations(path, "key"), of_class("poor", 50, 8)
    assert read["a"].image_filter is None and read["poor"].image_filter.digest != read["b"].image_filter.digest
    for name, own in mine.items():
        assert read[name].to_json() == own.to_json()
        np.testing.assert_array_equal(read[name].real_moments.real.covariance, own.real_moments.real.covariance)
        if own.image_filter:
            stored = read[name].image_filter
            assert stored.digest == own.image_filter.digest and stored.thresholds() == own.image_filter.thresholds()
            assert stored.scores(Evidence(images)) == own.image_filter.scores(Evidence(images))
            assert failed(stored, images) == failed(own.image_filter, images)
    assert read_calibrations(path, "another") is None and problems(tmp_path) == []
    assert "measured again" not in caplog.text


@pytest.mark.parametrize("lost", ["filters/1/memorised/rows", "real/0/mean", "space/axes"])
def test_a_calibration_without_an_array_is_measured_again(features, space, tmp_path, caplog, lost):
    path, arrays = tmp_path / "calibration.json", tmp_path / "calibration.safetensors"
    criteria = Criteria(FilterOptions((OUTLIER, MEMORISED)))
    mine = {name: stored_filter(name, features, space, criteria) for name in ("poor", "b")}
    write_calibrations(path, "key", "features", 0, mine)
    tensors = safetensors.numpy.load(arrays.read_bytes())
    arrays.write_bytes(safetensors.numpy.save({name: of for name, of in tensors.items() if name != lost}))
    values = storage.read_sealed_json(path)
    values["arrays"]["sha256"] = storage.sha256_file(arrays)
    storage.write_sealed_json(path, values)
    assert read_calibrations(path, "key") is None
    assert "another version of rebalance has written it. It is measured again" in caplog.text


def test_damaged_calibrations_are_named_and_those_of_another_version_measured_again(features, space, tmp_path, caplog):
    path, arrays = tmp_path / "calibration.json", tmp_path / "calibration.safetensors"
    criteria = Criteria(FilterOptions((OUTLIER,)))
    write_calibrations(path, "key", "features", 0, {"poor": stored_filter("poor", features, space, criteria)})
    values = storage.read_sealed_json(path)
    storage.write_sealed_json(path, {**values, "version": 5})
    assert read_calibrations(path, "key") is None and "by another version of rebalance" in caplog.text
    storage.write_sealed_json(path, values)
    data = bytearray(arrays.read_bytes())
    data[-3] ^= 1
    arrays.write_bytes(data)
    assert read_calibrations(path, "key") is None and "is damaged" in caplog.text
    (problem,) = problems(tmp_path)
    assert problem.file == str(path) and "safetensors is damaged" in problem.what


@dataclass(frozen=True)
class FittedBrightness(FittedCheck):
    """The brightness of the brightest real image."""

    most: float

    @property
    def threshold(self) -> float:
        return self.most

    def score(self, batch: ScoredBatch) -> np.ndarray:
        return batch.evidence.measured["brightness"] / 255

    def fails(self, score: float) -> bool:
        return score > self.most

    def arrays(self) -> dict[str, np.ndarray]:
        return {"most": np.array([self.most])}

    def numbers(self) -> dict[str, float]:
        return {}


class BrightnessCheck(Check):
    """Reject images that are brighter than all real ones."""

    name, score_name, threshold_name = "too_bright", "brightness", "max_brightness"
    score_doc = "mean brightness, 0 to 1"
    limit = Limit("max_brightness", 0.0, 1.0)
    pixel_measures = {"brightness": lambda pixels: pixels.mean((1, 2, 3))}  # noqa: RUF012

    def fit(self, material: ClassMaterial) -> Fit:
        of_train = material.real.measured["brightness"][material.class_name] / 255
        return Fit(FittedBrightness(float(of_train.max()) if material.limit is None else material.limit))

    def restored(self, stored: StoredCheck) -> FittedBrightness:
        return FittedBrightness(float(stored.arrays["most"][0]))


def test_a_recipe_asks_registered_checks_alone():
    assert FilteringOptions().checks == check_names()
    with pytest.raises(InputError, match=r"filtering.checks is unknown"):
        FilteringOptions(checks=("outlier", "too_bright"))


def test_adding_a_check_takes_the_check_and_its_registration(features, space, tmp_path, monkeypatch):
    monkeypatch.setitem(checks.REGISTRY, "too_bright", BrightnessCheck())
    real_images = replace(features, measured={"brightness": {"poor": np.linspace(50, 102, 150)}})
    pixels = np.full((300, 4, 4, 3), 80, np.uint8)
    pixels[:30] = 200
    pool = filtering.evidence_from(of_class("poor", 300, 3), pixels)
    criteria = Criteria(FilterOptions((OUTLIER, "too_bright", INFLUENCE)))
    found = calibrate_class("poor", real_images, space, pool, criteria, floor_draws=3, seed=0)
    assert found.rejects["too_bright"] > 25 and found.thresholds["max_brightness"] == pytest.approx(0.4)
    write_calibrations(tmp_path / "calibration.json", "key", "features", 0, {"poor": found})
    image_filter = read_calibrations(tmp_path / "calibration.json", "key")["poor"].image_filter
    scores = image_filter.scores(pool)
    assert scores == found.image_filter.scores(pool)
    assert scores[0].to_json().keys() == {"outlier", "confidence", "similarity", "influence", "brightness"}
    assert scores[0]["brightness"] == pytest.approx(200 / 255, abs=1e-6) and scores[0]["confidence"] == -1
    assert "too_bright" in image_filter.judge(scores[0]).reasons
    assert "too_bright" not in image_filter.judge(scores[40]).reasons
    assert FilteringOptions(checks=("too_bright",)).checks == ("too_bright",)
    asked = FilterOptions.asked((), SimpleNamespace(max_brightness=0.9))
    assert asked.checks == ("too_bright",) and asked.to_json()["max_brightness"] == 0.9
    with pytest.raises(InputError, match=r"`max_brightness`.*allowed: 0 to 1"):
        FilterOptions(limits={"max_brightness": 2.0})


def test_a_probe_tells_classes_apart_and_weighs_them_alike():
    train = {"a": of_class("a", 300, 1), "poor": of_class("poor", 6, 1), "empty": np.zeros((0, D))}
    probe = fit_probe(train, 0)
    assert probe.names == ("a", "poor")
    for name in ("a", "poor"):
        assert (probe.predict(of_class(name, 200, 5)) == name).mean() > 0.95
    np.testing.assert_allclose(probe.probabilities(of_class("b", 9, 1)).sum(1), 1)
    three = fit_probe({**train, "b": of_class("b", 50, 1)}, 0)
    assert (three.predict(of_class("b", 200, 5)) == "b").mean() > 0.95
    assert fit_probe({"a": train["a"]}, 0) is None


def test_confidence_of_unseen_images_comes_from_probes_without_them():
    rng = np.random.default_rng(0)
    noise = {"a": rng.standard_normal((40, 400)), "b": rng.standard_normal((40, 400))}
    seen = fit_probe(noise, 0).confidence(noise["a"], "a")
    found = held_out_confidence(noise, 0)
    unseen = found["a"]["a"]
    np.testing.assert_allclose(found["a"]["b"] + found["b"]["b"], 1)
    assert len(unseen) == 40 and seen.mean() > unseen.mean() + 0.15 and 0.3 < unseen.mean() < 0.7


def test_one_set_of_probes_tells_the_unseen_confidence_of_all_classes(monkeypatch):
    fits = []
    monkeypatch.setattr(class_probe, "_fit", lambda *of, fit=class_probe._fit: fits.append(of) or fit(*of))
    features = RealFeatures({"a": of_class("a", 30, 1), "one": of_class("b", 1, 1), "poor": of_class("poor", 7, 1)}, {})
    found = {name: features.unseen_confidence(name, name, 0) for name in features.train}
    assert len(fits) == 5 and {name: len(of) for name, of in found.items()} == {"a": 30, "one": 0, "poor": 7}
    assert np.isfinite(found["poor"]).all() and found["poor"].mean() > 0.5


@pytest.mark.parametrize(
    ("option", "value"), [("keep", 0.0), ("keep", 1.1), ("min_confidence", -0.1), ("max_similarity", 1.5)]
)
def test_limits_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=f"`{option}`"):
        FilterOptions(limits={option: value})


def test_the_floor_of_kid_is_what_real_images_have_between_them():
    sets = [of_class("a", 200, seed) for seed in range(40, 60)]
    floor = np.mean([kernel_floor(s, 200, 10, 0) for s in sets[:10]])
    found = np.mean([abs(kernel_distance(s, t).value) for s, t in zip(sets[:10], sets[10:], strict=True)])
    assert floor / 2.5 < found < floor * 2.5
    assert kernel_floor(sets[0], 10_000, 10, 0) < kernel_floor(sets[0], 100, 10, 0)
