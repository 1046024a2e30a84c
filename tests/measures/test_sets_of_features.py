"""Kernel distance, neighbourhoods and memorised images against known answers and other implementations."""

import numpy as np
import pytest
from cleanfid.fid import kernel_distance as cleanfid_kernel_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch_fidelity.metric_kid import mmd2

from rebalance.errors import InputError
from rebalance.measures import kid
from rebalance.measures.kid import kernel_distance
from rebalance.measures.neighbours import NEIGHBOURS, memorised_share, neighbourhoods


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, d)) * scale + shift).astype(np.float32)


SETS = [
    (normal(80, 4, 0), normal(60, 4, 1)),
    (normal(50, 30, 2), normal(90, 30, 3, shift=0.3)),
    (normal(60, 6, 4, shift=20), normal(60, 6, 5, shift=20, scale=0.5)),
]


@pytest.mark.parametrize(("real", "synthetic"), SETS)
def test_neighbourhoods_are_those_of_prdc(real, synthetic):
    expected = compute_prdc(real.astype(np.float64), synthetic.astype(np.float64), NEIGHBOURS)
    found = vars(neighbourhoods(real, synthetic))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("real", "synthetic"), SETS)
def test_the_kernel_distance_is_the_unbiased_one_over_all_pairs(real, synthetic):
    n = min(len(real), len(synthetic))
    real, synthetic = real[:n].astype(np.float64), synthetic[:n].astype(np.float64)
    d = real.shape[1]
    kernels = [(a @ b.T / d + 1) ** 3 for a, b in ((real, real), (real, synthetic), (synthetic, synthetic))]
    assert kernel_distance(real, synthetic).value == pytest.approx(mmd2(*kernels), rel=1e-9)


@pytest.mark.parametrize(("real", "synthetic"), SETS)
def test_the_kernel_distance_is_that_of_clean_fid(real, synthetic):
    n = min(len(real), len(synthetic))
    real, synthetic = real[:n].astype(np.float64), synthetic[:n].astype(np.float64)
    expected = cleanfid_kernel_distance(real, synthetic, num_subsets=1, max_subset_size=n)
    assert kernel_distance(real, synthetic).value == pytest.approx(expected, rel=1e-6)


def test_the_jackknife_is_what_leaving_out_one_image_gives():
    real, synthetic = normal(12, 3, 0), normal(9, 3, 1, shift=0.5)
    variance = 0.0
    for side in (0, 1):
        left_out = []
        for number in range(len((real, synthetic)[side])):
            sets = [real, synthetic]
            sets[side] = np.delete(sets[side], number, axis=0)
            left_out.append(kernel_distance(*sets).value)
        variance += (len(left_out) - 1) * np.var(left_out)
    assert kernel_distance(real, synthetic).error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_the_standard_error_tells_the_spread_between_samples():
    estimates = [kernel_distance(normal(60, 4, 2 * seed), normal(60, 4, 2 * seed + 1)) for seed in range(60)]
    values, errors = ([getattr(e, name) for e in estimates] for name in ("value", "error"))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60), "unbiased: 0 for two samples of one distribution"
    assert 0.6 < np.mean(errors) / np.std(values) < 1.8


def test_large_sets_are_drawn_from_with_the_seed(monkeypatch):
    monkeypatch.setattr(kid, "MAX_KERNEL_IMAGES", 30)
    real, synthetic = normal(100, 3, 0), normal(90, 3, 1)
    values = [kernel_distance(real, synthetic, seed).value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@given(n=st.integers(6, 40), d=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_a_set_and_itself(n, d, seed):
    real = normal(n, d, seed)
    found = neighbourhoods(real, real)
    assert found.precision == found.recall == found.coverage == 1
    assert found.density >= 1
    assert memorised_share(real, normal(50, d, seed + 100), real) == 1


@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_images_does_not_matter(seed):
    real, synthetic = normal(30, 4, seed), normal(25, 4, seed + 1)
    shuffled = np.random.default_rng(seed).permutation(25)
    before, after = (neighbourhoods(real, x) for x in (synthetic, synthetic[shuffled]))
    assert before == after
    values = [kernel_distance(real, x).value for x in (synthetic, synthetic[shuffled])]
    assert values[0] == pytest.approx(values[1])


def test_sets_far_apart_share_nothing():
    found = neighbourhoods(normal(30, 4, 0), normal(30, 4, 1, shift=100))
    assert vars(found) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    near, far = (kernel_distance(normal(30, 4, 0), normal(30, 4, 1, shift=s)).value for s in (0, 1))
    assert far > 10 * abs(near)


def test_half_the_real_set_is_covered_by_half_of_it():
    real = np.concatenate([normal(40, 3, 0), normal(40, 3, 1, shift=50)])
    assert neighbourhoods(real, real[:40]).coverage == 0.5
    assert neighbourhoods(real, real[:40]).recall == 0.5


def test_memorised_images_are_those_nearer_than_held_out_ones():
    train, held_out = normal(200, 5, 0), normal(300, 5, 1)
    fresh, copies = normal(50, 5, 2), train[:50] + 1e-4
    assert memorised_share(train, held_out, fresh) < 0.1
    assert memorised_share(train, held_out, np.concatenate([fresh, copies])) >= 0.5
    leaking = np.concatenate([held_out, train[:20]])
    assert memorised_share(train, leaking, train) == 1


def test_too_few_images_and_broken_features_are_refused():
    with pytest.raises(InputError, match="too few synthetic images"):
        neighbourhoods(normal(10, 3, 0), normal(5, 3, 1))
    with pytest.raises(InputError, match="too few real images"):
        kernel_distance(normal(2, 3, 0), normal(5, 3, 1))
    broken = normal(10, 3, 0)
    broken[3, 1] = np.nan
    for measure in (neighbourhoods, kernel_distance):
        with pytest.raises(InputError, match="not finite"):
            measure(normal(10, 3, 1), broken)
