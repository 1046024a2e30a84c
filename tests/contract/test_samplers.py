"""Samplers of pairs and of images of classes: what they draw, and that processes share it."""

import dataclasses

import numpy as np
import pytest
import torch

from rebalance.errors import InputError
from rebalance.learning.image_store import ImageStore
from rebalance.learning.sampling import ClassPool, ClassSampler, PairSampler, TrainingPools, own_rows
from rebalance.runtime.ranks import Ranks


def pools() -> TrainingPools:
    """Two rich classes, the first of two modalities, and two targets; the value of an image is its position."""
    pixels = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    parts = np.split(np.arange(60), [20, 30, 50, 55])
    classes = (
        ClassPool("a", (0, 1), (parts[0], parts[1])),
        ClassPool("b", (2,), (parts[2],)),
        ClassPool("poor", (3,), (parts[3],)),
        ClassPool("rare", (4,), (parts[4],)),
    )
    sources = {"poor": ("a",), "rare": ("a", "b")}
    return TrainingPools(ImageStore(np.arange(60), pixels), classes, np.ones((4, 4), bool), sources)


SAMPLERS = [
    lambda ranks: PairSampler(pools(), "classes", 16, 0, ranks=ranks),
    lambda ranks: PairSampler(pools(), "modalities", 16, 0, per_class=2, same_modality=True, ranks=ranks),
    lambda ranks: PairSampler(pools(), "classes", 16, 0, directed=True, parts=2, ranks=ranks),
    lambda ranks: ClassSampler(pools(), 16, 0, parts=4, ranks=ranks),
]


def columns(batch) -> list[torch.Tensor]:
    return [getattr(batch, field.name) for field in dataclasses.fields(batch)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_a_function_of_the_step(sampler):
    first, again, other = sampler(Ranks())(3), sampler(Ranks())(3), sampler(Ranks())(4)
    assert all(torch.equal(a, b) for a, b in zip(columns(first), columns(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(columns(first), columns(other), strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_processes_share_every_part_of_the_batch(sampler):
    whole, shares = sampler(Ranks())(0), [sampler(Ranks(number, 2))(0) for number in range(2)]
    parts = sampler(Ranks()).parts
    for column, *of_ranks in zip(columns(whole), *map(columns, shares), strict=True):
        rows = torch.cat([share.unflatten(0, (parts, -1)) for share in of_ranks], 1)
        assert torch.equal(rows.flatten(0, 1), column)


def test_directed_pairs_lead_from_a_targets_sources_to_the_target():
    seen = set()
    for step in range(20):
        batch = SAMPLERS[2](Ranks())(step)
        seen |= set(zip(batch.source_label.tolist(), batch.reference_label.tolist(), strict=True))
    assert seen == {(0, 3), (1, 3), (0, 4), (1, 4), (2, 4)}


def test_neighbours_have_references_of_one_translator_class():
    for step in range(20):
        batch = SAMPLERS[1](Ranks())(step)
        assert torch.equal(batch.reference_label[::2], batch.reference_label[1::2])


def test_rows_that_cannot_be_cut_are_refused():
    assert own_rows(8, Ranks(1, 2), parts=2).tolist() == [2, 3, 6, 7]
    with pytest.raises(InputError, match="with 2 processes; got 12; allowed: multiples of 8"):
        own_rows(12, Ranks(0, 2), parts=2, multiple=2)
