"""Fixtures that several test files share."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# A shared machine may stall any example; its speed is not what is tested.
settings.register_profile("rebalance", deadline=None)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("rebalance")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the user's cache out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBALANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _write_class(folder, count, level, rng, size):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(level - 12, level + 13, (size[1], size[0]), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A factory: `image_folder(counts, seed=0, size=(8, 8))` writes gray PNG files and returns their new folder.

    `counts` maps class to number of images, or split to such a mapping. Every image is noise around the gray level of
    its class, 20 levels apart in alphabetical order, so classes that are neighbours in the alphabet look alike.
    """

    def write(counts, seed=0, size=(8, 8)):
        root = tmp_path_factory.mktemp("images")
        splits = counts if all(isinstance(value, Mapping) for value in counts.values()) else {"": counts}
        names = sorted({name for classes in splits.values() for name in classes})
        rng = np.random.default_rng(seed)
        for split, classes in splits.items():
            for name, count in classes.items():
                _write_class(root / split / name, count, 20 + 20 * names.index(name), rng, size)
        return root

    return write


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """scikit-learn's digits as `{train,test}/DIGIT/*.png`, three classes made rare."""
    from rebalance.cli import demo  # imports torch, which tests without this fixture need not wait for

    root = tmp_path_factory.mktemp("digits")
    demo.write_digits(root)
    return root


@pytest.fixture
def one_thread():
    """Run torch on one thread: on a busy machine, tiny networks take many times longer on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
