"""Losses, pure: tensors in, scalar tensors out; `spread` gives one value a pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hinge_discriminator(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """BalaGAN equation 2, first line, as a mean over images and patches; scores of any shape."""
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def hinge_generator(fake_scores: torch.Tensor) -> torch.Tensor:
    """BalaGAN equation 2, second line, as a mean over images and patches."""
    return -fake_scores.mean()


def feature_matching(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """BalaGAN equation 4: mean L1 distance between spatially averaged features, both (B, C, h, w)."""
    return F.l1_loss(features.float().mean((2, 3)), targets.float().mean((2, 3)))


def spread(first: torch.Tensor, second: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Hinge that keeps pairs of images apart, in proportion to a distance that is wanted, per pair (B,).

    It is the distance constraint of DistanceGAN (Benaim and Wolf, 2017) made one-sided, as bounded a push to variety as
    the diversity loss of StarGAN v2 (Choi et al., 2020, equation 3) is unbounded.

    Args:
        first: (B, C, H, W).
        second: (B, C, H, W).
        distance: (B,) mean absolute difference that each pair should have at least; pairs at 0 count nothing.

    Returns:
        (B,) the share of the wanted distance that is missing, 0 to 1.
    """
    apart = (first - second).abs().mean((1, 2, 3))
    return torch.where(distance > 0, F.relu(1 - apart / distance.clamp(min=1e-6)), 0.0)


def r1_penalty(scores: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """R1 (Mescheder et al., 2018): the squared gradient norm of each image's score, averaged over images.

    The released code differentiates the mean over the batch, which weakens the penalty as 1/B^2; here the score of an
    image is its mean over patches, and the batch is summed before it is differentiated.

    Args:
        scores: (B, h, w) patch scores of `images`' own classes.
        images: (B, C, H, W), requiring a gradient.
    """
    (gradient,) = torch.autograd.grad(scores.float().mean((1, 2)).sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent (Chen et al., 2020, equation 1) over two views.

    Args:
        first: (B, d) projections of the first views; row i belongs with row i of `second`.
        second: (B, d) projections of the second views.
        temperature: divides the cosine similarities.
    """
    views = F.normalize(torch.cat([first, second]).float())
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(first)
    partners = torch.arange(2 * n, device=views.device).roll(n)
    return F.cross_entropy(similarity, partners)


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mean, exp(log_variance)) from N(0, I), both (B, d), summed over d, averaged over images."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
