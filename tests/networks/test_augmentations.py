"""Augmentations: seeded, image by image, within range."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance.config import AUGMENTATIONS
from rebalance.networks.augmentations import diff_augment, distort_content, random_grayscale, shuffle_patches
from rebalance.runtime.draws import Draws

pytestmark = pytest.mark.usefixtures("one_thread")

POLICIES = ("brightness", "contrast", "saturation", "translation", "cutout")


def pictures(n: int = 6, channels: int = 3, height: int = 16, width: int = 16, seed: int = 5) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distort(images: torch.Tensor, name: str, seed: int = 0) -> torch.Tensor:
    return distort_content(images, (name,), Draws(seed))


def augment(images: torch.Tensor, name: str, seed: int = 0) -> torch.Tensor:
    return diff_augment(images, (name,), 0.25, Draws(seed))


EACH = [(distort, name) for name in AUGMENTATIONS] + [(augment, name) for name in POLICIES]
each = pytest.mark.parametrize(("change", "name"), EACH, ids=[name for _, name in EACH])


@each
def test_every_named_option_changes_something(change, name):
    images = pictures(16)
    assert not torch.equal(change(images, name), images)


@each
def test_the_same_seed_gives_the_same_result_and_another_seed_another(change, name):
    images = pictures(16)
    untouched = images.clone()
    assert torch.equal(change(images, name, 1), change(images, name, 1))
    assert not torch.equal(change(images, name, 1), change(images, name, 2))
    assert torch.equal(images, untouched)


@each
def test_global_random_state_is_neither_read_nor_changed(change, name):
    images = pictures()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = change(images, name)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(change(images, name), first)


@each
def test_an_image_does_not_see_its_neighbours(change, name):
    images, others = pictures(), pictures(seed=6)
    mixed = torch.cat([images[:2], others[2:4], images[4:]])
    alone, beside = change(images, name), change(mixed, name)
    torch.testing.assert_close(beside[:2], alone[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(beside[4:], alone[4:], rtol=0, atol=1e-6)


@each
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 16, 16), (2, 3, 9, 9), (2, 1, 31, 31)])
def test_shapes_and_layouts(change, name, shape, layout):
    images = pictures(*shape)
    changed = change(images.contiguous(memory_format=layout), name)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert changed.isfinite().all()
    torch.testing.assert_close(changed, change(images, name), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(AUGMENTATIONS), channels=st.sampled_from([1, 3]), seed=st.integers(0, 999))
def test_distortions_stay_within_range(name, channels, seed):
    extremes = pictures(4, channels, 12, 12, seed).sign()
    changed = distort(extremes, name, seed)
    assert changed.min() >= -1 - 1e-5 and changed.max() <= 1 + 1e-5


def test_all_distortions_together():
    images = pictures()
    changed = distort_content(images, AUGMENTATIONS, Draws(0))
    assert changed.shape == images.shape and changed.abs().max() <= 1 + 1e-5


def test_without_names_nothing_changes():
    images = pictures()
    assert distort_content(images, (), Draws(0)) is images
    assert diff_augment(images, (), 0.25, Draws(0)) is images


def test_grayscale_makes_channels_equal_in_about_a_fifth_of_rgb_images():
    images = pictures(200, 3, 4, 4)
    changed = random_grayscale(images, Draws(0))
    gray = (changed == changed[:, :1]).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (gray ^ kept).all()
    assert 20 <= int(gray.sum()) <= 62
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(changed[gray][:, 0], luma[gray], rtol=0, atol=1e-6)


def test_grayscale_leaves_gray_images_as_they_are():
    images = pictures(20, 1)
    assert torch.equal(random_grayscale(images, Draws(0)), images)


def test_flip_mirrors_whole_images():
    images = pictures(30)
    changed = distort(images, "flip")
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (mirrored ^ kept).all() and 5 <= int(mirrored.sum()) <= 25


def test_blur_lowers_contrast_and_keeps_constant_images():
    images = pictures(30, 3, 32, 32)
    blurred = distort(images, "blur")
    assert blurred.std() < images.std() * 0.95
    # Every image keeps its own colour: no filter crosses images or channels.
    colours = images + torch.linspace(-5, 5, 90).view(30, 3, 1, 1)
    means = distort(colours, "blur").mean((2, 3))
    torch.testing.assert_close(means, colours.mean((2, 3)), rtol=0, atol=0.05)
    constant = torch.full((4, 3, 16, 16), 0.7)
    torch.testing.assert_close(distort(constant, "blur"), constant, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    patches=st.integers(2, 5), height=st.integers(5, 14), width=st.integers(5, 14), channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_patch_shuffle_keeps_the_multiset_of_pixels(patches, height, width, channels, seed):
    images = pictures(3, channels, height, width, seed)
    shuffled = shuffle_patches(images, patches, Draws(seed))

    def pixels(image: torch.Tensor) -> list[list[float]]:
        return sorted(image.flatten(1).T.tolist())

    assert all(pixels(image) == pixels(other) for image, other in zip(images, shuffled, strict=True))
    assert not torch.equal(images, shuffled)


def test_patch_shuffle_moves_whole_patches():
    patches = torch.arange(1.0, 17).view(4, 4).repeat_interleave(3, 0).repeat_interleave(2, 1)[None, None]
    shuffled = shuffle_patches(patches, 4, Draws(0))[0, 0]
    cells = shuffled.unfold(0, 3, 3).unfold(1, 2, 2)
    assert (cells == cells[:, :, :1, :1]).all()
    assert not torch.equal(shuffled, patches[0, 0])


def test_patch_shuffle_leaves_the_border_that_does_not_divide():
    images = pictures(2, 3, 11, 10)
    shuffled = shuffle_patches(images, 3, Draws(0))
    assert torch.equal(shuffled[:, :, 9:], images[:, :, 9:])
    assert torch.equal(shuffled[:, :, :, 9:], images[:, :, :, 9:])


@pytest.mark.parametrize("patches", [0, 1, 17])
def test_patch_shuffle_of_impossible_patches_changes_nothing(patches):
    images = pictures()
    assert torch.equal(shuffle_patches(images, patches, Draws(0)), images)


@pytest.mark.parametrize("policy", [*((name,) for name in POLICIES), POLICIES])
def test_diff_augment_is_differentiable(policy):
    images = pictures(3, 3, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, policy, 0.25, Draws(4)), (images,), fast_mode=True)
    diff_augment(images, policy, 0.25, Draws(4)).sum().backward()
    assert images.grad.abs().sum() > 0


def test_translation_moves_pixels_and_repeats_the_border():
    images = pictures(40, 2, 8, 8).abs() + 0.1
    moved = diff_augment(images, ("translation",), 0.25, Draws(0))
    shifts = set()
    for image, other in zip(images, moved, strict=True):
        matches = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                padded = F.pad(image[None], (2, 2, 2, 2), mode="replicate")[0]
                expected = padded[:, 2 - dy : 10 - dy, 2 - dx : 10 - dx]
                if torch.equal(expected, other):
                    matches.append((dy, dx))
        assert len(matches) == 1
        shifts.add(matches[0])
    assert {abs(value) for shift in shifts for value in shift} == {0, 1, 2}
    assert len(shifts) > 10


def test_no_translation_at_fraction_zero():
    images = pictures()
    assert torch.equal(diff_augment(images, ("translation",), 0.0, Draws(0)), images)


def test_cutout_zeroes_one_rectangle():
    images = pictures(30).abs() + 0.1
    cut = diff_augment(images, ("cutout",), 0.0, Draws(0))
    hole = (cut == 0).all(1)
    assert torch.equal(cut, images * ~hole[:, None])
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    assert (rows.sum(1) <= 8).all() and hole.any((1, 2)).all()
