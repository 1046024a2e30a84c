"""Modalities: clustering, assigning, storing, showing, and the encoders behind them."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import same_tensors, tiny_recipe, weights_of, write_classes

from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex, build_index
from rebalance.learning.batches import ImageBatch
from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.learning.trainable import StepContext
from rebalance.modalities import Modalities, Modality, assign, embed, make_encoder, modality_preview
from rebalance.modalities.clustering import cluster
from rebalance.runtime.draws import Draws

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(sizes: tuple[int, ...], dimensions: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around orthogonal axes, shuffled, with the axis of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = np.eye(dimensions)[labels] + rng.normal(0, 0.05, (len(labels), dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(15, 40), min_size=2, max_size=3, unique=True), seed=st.integers(0, 99))
def test_cluster_finds_separable_blobs_the_largest_first(sizes, seed):
    features, truth = blobs(tuple(sizes), seed=seed)
    labels = cluster(features, len(sizes), seed)
    assert labels.dtype == np.int64 and labels.shape == truth.shape
    assert np.bincount(labels).tolist() == sorted(sizes, reverse=True)
    assert len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == len(sizes)


def test_cluster_is_spherical():
    """Length says nothing: points of one direction belong together however long they are."""
    features, truth = blobs((30, 20))
    lengths = np.random.default_rng(1).uniform(0.1, 10, (50, 1)).astype(np.float32)
    labels = cluster(features * lengths, 2, 0)
    assert len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == 2


def test_cluster_is_seeded():
    features = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    first = cluster(features, 7, 1)
    assert np.array_equal(first, cluster(features, 7, 1))
    assert any(not np.array_equal(first, cluster(features, 7, seed)) for seed in (2, 3, 4))


def test_cluster_of_copies_gives_no_empty_modality():
    features = np.tile(np.eye(4, dtype=np.float32)[:2], (5, 1))
    labels = cluster(features, 4, 0)
    counts = np.bincount(labels)
    assert (counts > 0).all() and labels.max() + 1 == len(counts)


def test_cluster_with_one_image_each():
    assert sorted(cluster(np.eye(5, dtype=np.float32), 5, 0).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cluster_leaves_thread_counts_as_they_were(threads):
    before, torch_before = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        faiss.omp_set_num_threads(threads)
        of_torch = torch.get_num_threads()
        cluster(blobs((20, 10))[0], 2, 0)
        assert faiss.omp_get_max_threads() == threads
        assert torch.get_num_threads() == of_torch
    finally:
        faiss.omp_set_num_threads(before)
        torch.set_num_threads(torch_before)


def test_clusters_do_not_depend_on_the_number_of_threads():
    features = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    before = faiss.omp_get_max_threads()
    try:
        results = []
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            results.append(cluster(features, 5, 0))
        assert np.array_equal(*results)
    finally:
        faiss.omp_set_num_threads(before)


COUNTS = {"a": 12, "b": 7, "poor": 3}


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    return build_index(write_classes(tmp_path_factory.mktemp("data"), COUNTS))


def by_pattern(index: ImageIndex):
    """Features that tell odd file numbers, a third of class a's, from the others."""

    def features(image_ids: np.ndarray) -> np.ndarray:
        odd = np.array([int(index.name(int(i))[-5]) % 3 == 1 for i in image_ids])
        return np.eye(2, dtype=np.float32)[odd.astype(int)]

    return features


def test_assign_clusters(index):
    modalities = assign(index, {"a": 2, "poor": 1}, "contrastive", by_pattern(index), 0)
    assert modalities.table == (Modality("a", 0), Modality("a", 1), Modality("poor", 0))
    assert modalities.of_class("a") == (0, 1) and modalities.of_class("poor") == (2,) and modalities.of_class("b") == ()
    sizes = [len(modalities.images_of(i)) for i in range(3)]
    assert sizes[0] > sizes[1] > 0 and sizes[0] + sizes[1] == 12 and sizes[2] == 3
    assert (np.diff(modalities.image_ids) > 0).all()
    for image_id in index.rows("train", "a"):
        odd = int(index.name(int(image_id))[-5]) % 3 == 1
        assert modalities.of_image(int(image_id)) == (1 if odd else 0)
    assert modalities.of_image(int(index.rows("train", "b")[0])) == -1
    assert modalities.of_image(10_000) == -1


def test_assign_asks_only_for_features_of_classes_that_are_split(index):
    asked = []

    def features(image_ids: np.ndarray) -> np.ndarray:
        asked.extend(image_ids.tolist())
        return by_pattern(index)(image_ids)

    assign(index, {"a": 2, "b": 1, "poor": 1}, "contrastive", features, 0)
    assert asked == index.rows("train", "a").tolist()


def test_assign_none_gives_one_modality_a_class(index):
    modalities = assign(index, dict.fromkeys(COUNTS, 1), "none", None, 0)
    assert modalities.table == tuple(Modality(name, 0) for name in COUNTS)
    assert [len(modalities.images_of(i)) for i in range(3)] == list(COUNTS.values())


def manifest(tmp_path, missing: bool = False) -> ImageIndex:
    write_classes(tmp_path / "images", COUNTS)
    rows = ["path,label,breed"]
    for name, count in COUNTS.items():
        for number in range(count):
            breed = "" if missing and (name, number) == ("a", 5) else f"{name}-{'wx'[number % 3 == 0]}"
            rows.append(f"images/{name}/{number:03d}.png,{name},{breed}")
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows) + "\n")
    return build_index(path, "breed")


def test_assign_by_column_takes_the_sub_labels(tmp_path):
    index = manifest(tmp_path)
    modalities = assign(index, {"a": 2, "b": 2, "poor": 1}, "column", None, 0)
    assert len(modalities.table) == 5
    sublabels = index.column("sublabel")
    for class_name in ("a", "b"):
        for modality in modalities.of_class(class_name):
            assert len({sublabels[i] for i in modalities.images_of(modality)}) == 1
    assert len(modalities.images_of(modalities.of_class("poor")[0])) == 3


def test_assign_by_column_names_the_image_without_sub_label(tmp_path):
    with pytest.raises(InputError, match=r"a/005\.png"):
        assign(manifest(tmp_path, missing=True), {"a": 2}, "column", None, 0)


def test_modalities_survive_saving(index, tmp_path):
    modalities = assign(index, {"a": 2, "b": 1, "poor": 1}, "contrastive", by_pattern(index), 0)
    modalities.save(tmp_path / "modalities.parquet", index)
    read = Modalities.read_from(tmp_path / "modalities.parquet")
    assert read.table == modalities.table
    assert np.array_equal(read.image_ids, modalities.image_ids) and read.image_ids.dtype == np.int64
    assert np.array_equal(read.modality_ids, modalities.modality_ids)


def test_saved_modalities_have_no_images_of_classes_that_take_no_part(index, tmp_path):
    import pyarrow.parquet as pq

    assign(index, {"a": 1, "poor": 1}, "none", None, 0).save(tmp_path / "modalities.parquet", index)
    rows = pq.read_table(tmp_path / "modalities.parquet").to_pylist()
    assert {row["class"] for row in rows} == {"a", "poor"} and len(rows) == 15
    assert all(row["path"] == index.name(row["id"]) and row["modality"] == 0 for row in rows)


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense", None])
def test_damaged_modalities_are_named(tmp_path, damage):
    path = tmp_path / "modalities.parquet"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(DamagedError, match=r"modalities\.parquet"):
        Modalities.read_from(path)


def test_preview_has_one_column_a_modality():
    modalities = Modalities(
        (Modality("a", 0), Modality("a", 1), Modality("b", 0)), np.arange(14), np.array([0] * 10 + [1] * 3 + [2])
    )
    colours = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}
    sheet = modality_preview(modalities, lambda i: np.full((32, 32, 3), colours[modalities.of_image(i)], np.uint8))
    pixels = np.asarray(sheet)
    assert pixels.shape == (8 * 34 + 2, 3 * 34 + 2, 3)
    for column, shown in enumerate((8, 3, 1)):
        for row in range(8):
            colour = tuple(pixels[2 + row * 34 + 16, 2 + column * 34 + 16])
            assert colour == (colours[column] if row < shown else (255, 255, 255))


ENCODER = {
    "width": 4, "blocks": [1, 1], "stem": "small", "projection": 6, "batch": 12, "steps": 3, "latent": 5,
    "precision": "fp32", "memory_format": "contiguous", "augmentations": ["crop", "flip", "colour_jitter", "blur"],
}  # fmt: skip


def encoder_batch(n: int = 12) -> ImageBatch:
    return ImageBatch(torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)


@pytest.mark.parametrize(
    ("by", "size", "terms"), [("contrastive", 8, {"nt_xent"}), ("vae", 5, {"reconstruction", "kl"})]
)
def test_encoders_train_and_embed_to_unit_norm(by, size, terms):
    recipe = tiny_recipe(modalities={"by": by, "encoder": ENCODER})
    encoder = make_encoder(recipe)
    before = weights_of(encoder.networks)
    trainer = Trainer(encoder, LoopOptions(steps=3), torch.device("cpu"))
    for step in range(3):
        (loss,) = trainer.step(encoder_batch(), step).values()
        assert loss.total.isfinite() and set(loss.terms) == terms
    after = weights_of(encoder.networks)
    weights = [key for key in before if key.endswith("weight")]
    assert all(not torch.equal(before[key], after[key]) for key in weights)
    images = encoder_batch(7).images
    features = embed(encoder, [images[:4], images[4:]])
    assert features.shape == (7, size) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert np.ptp(features, axis=0).max() > 1e-4
    # In evaluation mode an image's features do not depend on the batch that it came in.
    np.testing.assert_allclose(features, embed(encoder, [images]), atol=1e-5)


@pytest.mark.parametrize("by", ["contrastive", "vae"])
def test_encoders_learn(by):
    recipe = tiny_recipe(modalities={"by": by, "encoder": {**ENCODER, "lr": 3e-3}})
    encoder = make_encoder(recipe)
    trainer = Trainer(encoder, LoopOptions(steps=40), torch.device("cpu"))
    totals = [float(trainer.step(encoder_batch(), step)["encoder"].total.detach()) for step in range(40)]
    assert np.mean(totals[-5:]) < np.mean(totals[:5])


@pytest.mark.parametrize("by", ["contrastive", "vae"])
def test_encoders_draw_their_weights_from_the_recipes_seed(by):
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return weights_of(make_encoder(tiny_recipe(seed=seed, modalities={"by": by, "encoder": ENCODER})).networks)

    state = torch.get_rng_state()
    assert same_tensors(weights(1), weights(1))
    assert not same_tensors(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_contrastive_views_come_from_the_steps_generator():
    encoder = make_encoder(tiny_recipe(modalities={"by": "contrastive", "encoder": ENCODER}))

    def views(seed: int) -> torch.Tensor:
        return encoder.forward(encoder_batch(), StepContext(0, Draws(seed), 0.0))[0]

    assert torch.equal(views(0), views(0))
    assert not torch.equal(views(0), views(1))
