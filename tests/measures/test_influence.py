"""The influence of images on a Fréchet distance."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from toys import plain_moments

from rebalance.config import FeatureOptions
from rebalance.measures.features import make_extractor
from rebalance.measures.frechet import Moments, fit_projection, frechet_distance, moments
from rebalance.measures.influence import influence_among_kept, influence_at

pytestmark = pytest.mark.usefixtures("one_thread")


def sets(n_real: int, n_synthetic: int, scale: float = 0.8, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((d, d))
    return rng.standard_normal((n_real, d)) @ mixing, rng.standard_normal((n_synthetic, d)) @ (mixing * scale) + 0.3


@pytest.mark.parametrize(("n", "least"), [(64, 0.95), (256, 0.99)])
def test_influence_ranks_images_as_leaving_each_out_does(n, least):
    real, synthetic = sets(500, n)
    of_real, whole = plain_moments(real), frechet_distance(plain_moments(real), plain_moments(synthetic))
    changes = [frechet_distance(of_real, plain_moments(np.delete(synthetic, i, 0))) - whole for i in range(n)]
    found = influence_at(of_real, plain_moments(synthetic)).of(synthetic)
    assert spearmanr(found, -np.array(changes)).statistic >= least
    assert np.polyfit(found, -np.array(changes) * (n - 1), 1)[0] == pytest.approx(1, abs=0.2)


def test_influence_ranks_real_features_as_leaving_each_out_does():
    efficientnet = make_extractor(FeatureOptions(input_px=64), torch.device("cpu"))
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)[:, :, :, None]
    chosen = [np.flatnonzero(digits.target == label)[:128] for label in (3, 8, 5, 9)]
    features = [efficientnet.extract_all(pixels[rows]) for rows in chosen]
    projection = fit_projection(np.concatenate(features), 16)
    real, synthetic = (projection.apply(np.concatenate(pair)) for pair in (features[:2], features[2:]))
    of_real, n = plain_moments(real), len(synthetic)
    whole = frechet_distance(of_real, plain_moments(synthetic))
    changes = [whole - frechet_distance(of_real, plain_moments(np.delete(synthetic, i, 0))) for i in range(n)]
    found = influence_at(of_real, plain_moments(synthetic)).of(synthetic)
    assert n == 256 and spearmanr(found, changes).statistic >= 0.99


def test_influence_is_zero_on_average_and_everywhere_for_equal_sets():
    real, synthetic = sets(300, 400)
    of_synthetic = Moments(synthetic.mean(0), np.cov(synthetic.T, ddof=0), len(synthetic))
    assert influence_at(plain_moments(real), of_synthetic).of(synthetic).mean() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(influence_at(of_synthetic, of_synthetic).of(synthetic), 0, atol=1e-6)


def test_dropping_what_has_much_influence_brings_the_set_nearer():
    real, synthetic = sets(500, 600, scale=1.5)
    found = influence_at(moments(real), moments(synthetic)).of(synthetic)
    kept, dropped = synthetic[found <= np.median(found)], synthetic[found > np.median(found)]
    distances = [frechet_distance(moments(real), moments(part)) for part in (kept, synthetic, dropped)]
    assert distances == sorted(distances)


@pytest.mark.parametrize(("share", "scale"), [(0.25, 0.7), (0.25, 1.3), (0.5, 1.3)])
def test_images_kept_by_the_influence_among_themselves_are_nearer_than_by_that_of_the_whole_set(share, scale):
    """Of a set off the mark, narrower or wider; the gradient at the whole set's moments overshoots."""
    real, synthetic = sets(2000, 1200, scale)
    fresh, of_real = sets(10, 4000, scale)[1], moments(real)
    distances = []
    for found in (influence_at(of_real, moments(synthetic)), influence_among_kept(of_real, synthetic, share)):
        kept = fresh[np.argsort(found.of(fresh), kind="stable")[: round(share * len(fresh))]]
        distances.append(frechet_distance(of_real, moments(kept)))
    chance = frechet_distance(of_real, moments(fresh[:1000]))
    assert distances[1] < 0.6 * distances[0] and distances[1] < 0.25 * chance


def test_influence_among_all_is_that_of_the_whole_set():
    real, synthetic = sets(500, 300)
    of_real = moments(real)
    whole, kept = influence_at(of_real, moments(synthetic)), influence_among_kept(of_real, synthetic, 1.0)
    np.testing.assert_allclose(kept.of(real), whole.of(real), rtol=1e-8, atol=1e-8)


def test_influence_among_one_image_of_few_is_finite():
    real, synthetic = sets(30, 3)
    assert np.isfinite(influence_among_kept(moments(real), synthetic, 0.01).of(synthetic)).all()
