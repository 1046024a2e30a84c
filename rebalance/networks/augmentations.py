"""Batched augmentations, each image with its own draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from rebalance.runtime.devices import without_waiting
from rebalance.runtime.draws import Draws


def _uniform(n: int, low: float, high: float, draws: Draws, like: torch.Tensor) -> torch.Tensor:
    drawn = draws.uniform(n) * (high - low) + low
    return without_waiting(drawn, like.device).to(like.dtype)[:, None, None, None]


def _chosen(n: int, probability: float, draws: Draws, like: torch.Tensor) -> torch.Tensor:
    return without_waiting(draws.uniform(n) < probability, like.device)[:, None, None, None]


def distort_content(images: torch.Tensor, names: Sequence[str], draws: Draws) -> torch.Tensor:
    """Apply the modality encoder's augmentations: they change what is shown and keep how it looks.

    Args:
        images: (B, C, H, W) float in [-1, 1].
        names: any of crop, flip, colour_jitter, grayscale, blur, patch_shuffle, applied in that order.
        draws: where random numbers come from.
    """
    steps: dict[str, Callable[[torch.Tensor, Draws], torch.Tensor]] = {
        "crop": random_crop,
        "flip": random_flip,
        "colour_jitter": colour_jitter,
        "grayscale": random_grayscale,
        "blur": random_blur,
        "patch_shuffle": lambda x, g: shuffle_patches(x, 8, g),
    }
    for name, step in steps.items():
        if name in names:
            images = step(images, draws)
    return images


def random_crop(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Random resized crop as in SimCLR: area 8-100%, aspect ratio 3/4-4/3, bilinear, back to the same size."""
    n = len(images)
    area = draws.uniform(n) * 0.92 + 0.08
    ratio = torch.exp((draws.uniform(n) * 2 - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    centre_x = (draws.uniform(n) * 2 - 1) * (1 - width)
    centre_y = (draws.uniform(n) * 2 - 1) * (1 - height)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = width, centre_x, height, centre_y
    theta = without_waiting(theta, images.device).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def random_flip(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Flip each image left to right with probability 1/2."""
    return torch.where(_chosen(len(images), 0.5, draws, images), images.flip(3), images)


def colour_jitter(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Change brightness, contrast and (of RGB) saturation of 80% of the images by up to 40%."""
    n = len(images)
    jittered = images + _uniform(n, -0.4, 0.4, draws, images)
    mean = jittered.mean((1, 2, 3), keepdim=True)
    jittered = (jittered - mean) * _uniform(n, 0.6, 1.4, draws, images) + mean
    gray = jittered.mean(1, keepdim=True)
    jittered = (jittered - gray) * _uniform(n, 0.6, 1.4, draws, images) + gray
    return torch.where(_chosen(n, 0.8, draws, images), jittered.clamp(-1, 1), images)


def random_grayscale(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Replace 20% of the images by their luma (ITU-R 601); gray images stay as they are."""
    chosen = _chosen(len(images), 0.2, draws, images)
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.where(chosen, luma.expand_as(images), images)


def random_blur(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Blur half of the images with a Gaussian of 0.1 to 2 px at 64 px, in proportion at other sizes."""
    n, channels, side = len(images), images.shape[1], images.shape[-1]
    scale = side / 64
    radius = max(1, math.ceil(4 * scale))
    sigma = _uniform(n, 0.1, 2.0, draws, images)[:, 0, 0] * scale + 1e-3
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=1).repeat_interleave(channels, 0)
    flat = images.reshape(1, n * channels, *images.shape[2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel[:, None, None], groups=n * channels)
    flat = F.conv2d(
        F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel[:, None, :, None], groups=n * channels
    )
    return torch.where(_chosen(n, 0.5, draws, images), flat.view_as(images), images)


def shuffle_patches(images: torch.Tensor, patches: int, draws: Draws) -> torch.Tensor:
    """Cut each image into `patches` x `patches` squares, permute them and flip each left to right at random.

    Args:
        images: (B, C, H, W); a border that does not divide evenly stays where it is.
        patches: patches a side.
        draws: where random numbers come from.
    """
    n, channels, height, width = images.shape
    if patches < 2 or patches > min(height, width):
        return images
    ph, pw = height // patches, width // patches
    inner = images[:, :, : ph * patches, : pw * patches]
    cut = inner.reshape(n, channels, patches, ph, patches, pw).permute(0, 2, 4, 1, 3, 5)
    cut = cut.reshape(n, patches**2, channels, ph, pw)
    order = without_waiting(draws.uniform(n, patches**2).argsort(1), images.device)
    cut = torch.take_along_dim(cut, order[:, :, None, None, None], dim=1)
    flip = without_waiting(draws.uniform(n, patches**2) < 0.5, images.device)[:, :, None, None, None]
    cut = torch.where(flip, cut.flip(4), cut)
    joined = cut.reshape(n, patches, patches, channels, ph, pw).permute(0, 3, 1, 4, 2, 5)
    shuffled = images.clone()
    shuffled[:, :, : ph * patches, : pw * patches] = joined.reshape(n, channels, ph * patches, pw * patches)
    return shuffled


def diff_augment(
    images: torch.Tensor, policy: Sequence[str], translation_fraction: float, draws: Draws
) -> torch.Tensor:
    """Apply DiffAugment (Zhao et al., 2020), differentiable in `images`, to all that a discriminator sees.

    Unlike there, a shift repeats the border instead of filling it with zeros.

    Args:
        images: (B, C, H, W) in [-1, 1].
        policy: any of brightness, contrast, saturation, translation, cutout.
        translation_fraction: largest shift, of the side; the border is repeated.
        draws: where random numbers come from.
    """
    n = len(images)
    if "brightness" in policy:
        images = images + _uniform(n, -0.5, 0.5, draws, images)
    if "saturation" in policy:
        mean = images.mean(1, keepdim=True)
        images = (images - mean) * _uniform(n, 0, 2, draws, images) + mean
    if "contrast" in policy:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * _uniform(n, 0.5, 1.5, draws, images) + mean
    if "translation" in policy:
        images = _translate(images, translation_fraction, draws)
    if "cutout" in policy:
        images = images * _cutout_mask(images, draws)
    return images


def _translate(images: torch.Tensor, fraction: float, draws: Draws) -> torch.Tensor:
    n, _, height, width = images.shape
    most_y, most_x = round(height * fraction), round(width * fraction)
    shift_y = draws.integers(-most_y, most_y + 1, n, 1)
    shift_x = draws.integers(-most_x, most_x + 1, n, 1)
    # The border is repeated: stripes of another colour would be what the discriminator sees first.
    rows = without_waiting((torch.arange(height)[None] + shift_y).clamp_(0, height - 1), images.device)
    columns = without_waiting((torch.arange(width)[None] + shift_x).clamp_(0, width - 1), images.device)
    pixels = images.permute(0, 2, 3, 1)
    picked = pixels[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _cutout_mask(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    n, _, height, width = images.shape
    centre_y = draws.integers(0, height + 1, n, 1)
    centre_x = draws.integers(0, width + 1, n, 1)
    inside_y = (torch.arange(height)[None] - centre_y).abs() < height // 4
    inside_x = (torch.arange(width)[None] - centre_x).abs() < width // 4
    hole = inside_y[:, :, None] & inside_x[:, None, :]
    return without_waiting(~hole, images.device).to(images.dtype)[:, None]
