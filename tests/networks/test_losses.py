"""Losses against slow or closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance.networks import losses

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hinge_of_the_discriminator_by_hand():
    real = torch.tensor([2.0, 0.5, -1.0, 1.0])  # 0, 0.5, 2, 0
    fake = torch.tensor([-2.0, -0.5, 1.0, -1.0])  # 0, 0.5, 2, 0
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx(2.5 / 4 + 2.5 / 4)
    assert losses.hinge_discriminator(real, fake - 0.5).item() == pytest.approx(2.5 / 4 + 1.5 / 4)
    assert losses.hinge_discriminator(torch.full((3, 2, 2), 1.0), torch.full((1, 4, 4), -1.0)).item() == 0


def test_hinge_does_not_push_scores_beyond_the_margin():
    real, fake = torch.tensor([1.5, 0.0], requires_grad=True), torch.tensor([-1.5, 0.0], requires_grad=True)
    losses.hinge_discriminator(real, fake).backward()
    assert real.grad.tolist() == [0.0, -0.5]
    assert fake.grad.tolist() == [0.0, 0.5]


def test_hinge_of_the_generator_is_the_negative_mean_score():
    scores = draw(3, 2, 2)
    assert losses.hinge_generator(scores).item() == pytest.approx(-scores.mean().item())


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 6), size=st.integers(2, 5), temperature=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_nt_xent_against_a_slow_loop(n, size, temperature, seed):
    first, second = draw(n, size, seed=seed), draw(n, size, seed=seed + 1000)
    views = [*first.double(), *second.double()]
    total = 0.0
    for i, view in enumerate(views):
        partner = (i + n) % (2 * n)
        cosines = [float(view @ other / (view.norm() * other.norm())) for other in views]
        others = sum(math.exp(cosines[j] / temperature) for j in range(2 * n) if j != i)
        total -= math.log(math.exp(cosines[partner] / temperature) / others)
    assert losses.nt_xent(first, second, temperature).item() == pytest.approx(total / (2 * n), rel=1e-3, abs=1e-4)


def test_nt_xent_is_lowest_for_matching_views():
    first = draw(6, 8)
    matching = losses.nt_xent(first, first, 0.5)
    assert matching < losses.nt_xent(first, draw(6, 8, seed=1), 0.5)
    assert matching < losses.nt_xent(first, first.roll(1, 0), 0.5)


def test_nt_xent_has_a_finite_gradient():
    first = draw(4, 3).requires_grad_()
    losses.nt_xent(first, draw(4, 3, seed=1), 0.1).backward()
    assert first.grad.isfinite().all() and first.grad.abs().sum() > 0


def test_feature_matching_compares_pooled_features():
    features, targets = draw(2, 3, 4, 4), draw(2, 3, 2, 2, seed=1)
    expected = sum(
        abs(float(features[b, c].mean() - targets[b, c].mean())) for b in range(2) for c in range(3)
    ) / 6  # fmt: skip
    assert losses.feature_matching(features, targets).item() == pytest.approx(expected, rel=1e-4)


def test_feature_matching_ignores_where_features_are():
    features = draw(2, 3, 4, 4)
    moved = features.roll((1, 2), (2, 3))
    assert losses.feature_matching(features, moved).item() == pytest.approx(0, abs=1e-6)
    assert losses.feature_matching(features, features.roll(1, 0)).item() > 0.01


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 4), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_gaussian_kl_against_torch_distributions(n, size, seed):
    mean, log_variance = draw(n, size, seed=seed), draw(n, size, seed=seed + 1000)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(losses.gaussian_kl(mean, log_variance), expected, rtol=1e-4, atol=1e-5)


def linear_scores(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Four patch scores an image, the p-th (p + 1) times the inner product with `weights`."""
    inner = (images * weights).sum((1, 2, 3))
    return torch.stack([inner * (p + 1) for p in range(4)], 1).view(-1, 2, 2)


def test_r1_of_a_linear_score_is_its_squared_norm():
    weights = draw(3, 4, 4)
    images = draw(5, 3, 4, 4, seed=1).requires_grad_()
    # The mean over patches of 1, 2, 3, 4 times w x has gradient 2.5 w.
    expected = 2.5**2 * weights.square().sum().item()
    assert losses.r1_penalty(linear_scores(images, weights), images).item() == pytest.approx(expected, rel=1e-4)


def test_r1_averages_over_different_images():
    images = draw(2, 1, 2, 2).requires_grad_()
    scores = (images.square().sum((1, 2, 3)))[:, None, None]
    # The gradient of sum(x^2) is 2 x.
    expected = (2 * images.detach()).square().sum((1, 2, 3)).mean().item()
    assert losses.r1_penalty(scores, images).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("repeats", [2, 7])
def test_r1_does_not_depend_on_the_batch_size(repeats):
    images = draw(3, 3, 4, 4)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 1))

    def penalty(batch: torch.Tensor) -> float:
        batch = batch.clone().requires_grad_()
        return losses.r1_penalty(network(batch)[:, 0], batch).item()

    assert penalty(images) > 1e-6
    assert penalty(images.repeat(repeats, 1, 1, 1)) == pytest.approx(penalty(images), rel=1e-4)


def test_r1_can_be_minimised():
    weights = draw(3, 4, 4).requires_grad_()
    images = draw(2, 3, 4, 4, seed=1).requires_grad_()
    losses.r1_penalty(linear_scores(images, weights), images).backward()
    # d/dw of 2.5^2 |w|^2
    torch.testing.assert_close(weights.grad, 2 * 2.5**2 * weights.detach(), rtol=1e-4, atol=1e-4)


def test_spread_is_the_share_of_the_wanted_distance_that_is_missing():
    first, second = torch.zeros(4, 1, 2, 2), torch.tensor([0.0, 0.25, 0.5, 2.0])[:, None, None, None].expand(4, 1, 2, 2)
    wanted = torch.tensor([0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(losses.spread(first, second, wanted), torch.tensor([1.0, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(losses.spread(second, first, wanted), losses.spread(first, second, wanted))


def test_spread_of_pairs_without_a_wanted_distance_is_zero_and_has_no_gradient():
    first = draw(2, 1, 3, 3).requires_grad_()
    term = losses.spread(first, first.detach() + 0.1, torch.tensor([0.0, 1.0]))
    term.sum().backward()
    assert term[0] == 0 and term[1] > 0
    assert not first.grad[0].any() and first.grad[1].all()


def test_spread_drives_a_pair_apart_until_it_is_far_enough():
    images = draw(2, 1, 4, 4, seed=3) * 0.1
    images[1] = images[0] + 0.01
    images.requires_grad_()
    optimizer = torch.optim.SGD([images], 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        losses.spread(images[:1], images[1:], torch.tensor([0.5])).sum().backward()
        optimizer.step()
    assert 0.5 <= float((images[0] - images[1]).detach().abs().mean()) < 0.8
