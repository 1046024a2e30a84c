"""The one loop: batches, averages, checkpoints, resuming, stopping, choosing a precision, looking."""

import copy
import os
import signal
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from toys import (
    ToyBatch,
    ToyTrainable,
    same_tensors,
    tiny_recipe,
    toy_batches,
    weights_of,
    write_classes,
)

from rebalance.config import OptimizerOptions
from rebalance.errors import DamagedError, DivergedError, InputError, InterruptedRunError
from rebalance.index import build_index
from rebalance.learning import timing
from rebalance.learning.averages import MovingAverage
from rebalance.learning.batches import PairBatch, prefetched
from rebalance.learning.checkpoints import CheckpointFolder
from rebalance.learning.image_store import ImageStore
from rebalance.learning.logs import TrainingLog, read_scalars
from rebalance.learning.loop import LoopOptions, Observation, Trainer, train
from rebalance.learning.sampling import ClassPool, PairSampler, TrainingPools
from rebalance.learning.timing import choose
from rebalance.learning.trainable import Loss, NetworkOptimizer, Phase, StepContext, Trainable
from rebalance.methods.base import Conditions, make_method
from rebalance.modalities.sampling import EncoderBatches
from rebalance.training.decoded import build_store
from rebalance.training.previews import (
    PROBES,
    MethodObserver,
    Probe,
    make_all,
    source_dependence,
    variance_share,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def numbered_store(n: int) -> ImageStore:
    """One-pixel images whose value is their position."""
    return ImageStore(np.arange(n, dtype=np.int64), np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1))


def positions_of(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def pools_of(sizes: dict[str, tuple[int, ...]]) -> tuple[ClassPool, ...]:
    """Pools of consecutive positions: each class's modalities have the given numbers of images."""
    pools, first, label = [], 0, 0
    for name, modalities in sizes.items():
        positions = []
        for size in modalities:
            positions.append(np.arange(first, first + size))
            first += size
        pools.append(ClassPool(name, tuple(range(label, label + len(modalities))), tuple(positions)))
        label += len(modalities)
    return tuple(pools)


def training_pools(sizes: dict[str, tuple[int, ...]], related: np.ndarray | None = None, **sources) -> TrainingPools:
    pools = pools_of(sizes)
    everyone = np.ones((len(pools), len(pools)), bool)
    store = numbered_store(sum(map(sum, sizes.values())))
    return TrainingPools(store, pools, everyone if related is None else related, sources)


def pair_batches(sizes: dict[str, tuple[int, ...]], related: np.ndarray | None = None, **options) -> PairSampler:
    return PairSampler(training_pools(sizes, related), **{"draw": "classes", "batch": 8, "seed": 0, **options})


def same_pairs(first: PairBatch, second: PairBatch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def drawn(batches: PairSampler, steps: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Labels and positions of sources and of references over many steps."""
    found = ([], [], [], [])
    for step in range(steps):
        batch = batches(step)
        found[0].extend(batch.source_label.tolist())
        found[1].extend(positions_of(batch.source))
        found[2].extend(batch.reference_label.tolist())
        found[3].extend(positions_of(batch.reference))
    return found


SIZES = {"rich": (30, 20), "other": (25,), "poor": (3,)}


@settings(deadline=None, max_examples=15)
@given(steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=5), seed=st.integers(0, 2**31 - 1))
def test_batches_are_a_function_of_seed_and_step(steps, seed):
    batches = pair_batches(SIZES, seed=seed)
    there = {step: batches(step) for step in steps}
    again = pair_batches(SIZES, seed=seed)
    for step in reversed(steps):
        assert same_pairs(there[step], again(step))
        assert not same_pairs(there[step], batches(step + 1))
        assert not same_pairs(there[step], pair_batches(SIZES, seed=seed ^ 1)(step))


def test_consecutive_pairs_share_their_reference_class_when_asked():
    single, double = (pair_batches(SIZES, batch=6, per_class=n)(0).reference_label for n in (1, 2))
    for step in range(40):
        batch = pair_batches({"rich": (30,), "other": (25,), "poor": (3,)}, batch=6, per_class=2)(step)
        assert torch.equal(batch.reference_label[::2], batch.reference_label[1::2])
    assert set(drawn(pair_batches(SIZES, per_class=2), 40)[2]) == {0, 1, 2, 3}
    assert single.shape == double.shape == (6,)


def test_prefetched_batches_are_the_same_in_order():
    batches = pair_batches(SIZES)
    for first, last in ((0, 7), (5, 6), (3, 5), (4, 4)):
        with prefetched(batches, first, last, pin=False) as stream:
            got = list(stream)
        assert len(got) == last - first
        assert all(same_pairs(batch, batches(step)) for step, batch in enumerate(got, first))


def test_prefetching_passes_errors_on():
    def broken(step: int) -> int:
        if step == 2:
            raise InputError("gone")
        return step

    with prefetched(broken, 0, 5, pin=False) as stream, pytest.raises(InputError, match="gone"):
        list(stream)


def test_pair_batches_have_images_with_their_labels():
    batches = pair_batches(SIZES)
    bounds = [(0, 30), (30, 50), (50, 75), (75, 78)]
    found = drawn(batches, 20)
    for labels, positions in (found[:2], found[2:]):
        assert len(labels) == 160
        assert all(
            low <= position < high for position, (low, high) in zip(positions, (bounds[i] for i in labels), strict=True)
        )
        assert set(labels) == {0, 1, 2, 3}
    batch = batches(0)
    assert batch.source.dtype == torch.float32 and batch.source_label.dtype == torch.int64
    assert batch.source.min() >= -1 and batch.source.max() <= 1


def assert_shares(labels: list[int], shares: list[float]) -> None:
    """Pearson's chi-square with a bound that a right sampler hardly ever passes over; draws are seeded."""
    counts = np.bincount(labels, minlength=len(shares))
    expected = np.array(shares) / np.sum(shares) * len(labels)
    assert ((counts - expected) ** 2 / expected).sum() < 12 + 2 * len(shares), counts


@pytest.mark.parametrize(("sources", "labels"), [(True, 0), (False, 2)])
def test_a_poor_class_is_drawn_as_often_as_a_rich_one(sources, labels):
    batches = pair_batches({"rich": (200,), "poor": (2,), "middle": (20,)}, batch=50)
    assert_shares(drawn(batches, 60)[labels], [1, 1, 1])


def test_draw_classes_then_modalities_then_images():
    found = drawn(pair_batches({"rich": (40, 10, 1), "poor": (2,)}, batch=50), 80)
    for labels, positions in (found[:2], found[2:]):
        assert_shares(labels, [1 / 6, 1 / 6, 1 / 6, 1 / 2])
        within = [position for position, label in zip(positions, labels, strict=True) if label == 0]
        assert_shares(within, [1] * 40)


def test_draw_modalities_is_uniform_over_modalities():
    found = drawn(pair_batches({"rich": (40, 10, 1), "poor": (2,)}, draw="modalities", batch=50), 80)
    assert_shares(found[0], [1, 1, 1, 1])
    assert_shares(found[2], [1, 1, 1, 1])


def test_source_and_reference_are_independent_when_all_are_paired():
    found = drawn(pair_batches({"rich": (40, 10), "poor": (2,)}, draw="modalities", batch=50), 80)
    assert_shares([a * 3 + b for a, b in zip(found[0], found[2], strict=True)], [1] * 9)


def test_only_related_classes_are_paired():
    related = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)
    found = drawn(pair_batches({"a": (5,), "b": (5,), "c": (5,)}, related=related), 60)
    assert set(zip(found[0], found[2], strict=True)) == set(zip(*np.nonzero(related), strict=True))


@pytest.mark.parametrize("sizes", [{"a": (5,), "b": (0,)}, {"a": (5,), "b": (3, 0)}, {"a": (5,), "b": ()}])
def test_an_empty_pool_is_refused(sizes):
    with pytest.raises(InputError, match="'b'"):
        pair_batches(sizes)


def test_encoder_batches_hold_distinct_images():
    batches = EncoderBatches(numbered_store(40), 16, 3)
    found = [positions_of(batches(step).images) for step in range(20)]
    assert all(len(set(batch)) == 16 for batch in found)
    assert {position for batch in found for position in batch} == set(range(40))
    assert torch.equal(batches(7).images, EncoderBatches(numbered_store(40), 16, 3)(7).images)
    assert not torch.equal(batches(7).images, EncoderBatches(numbered_store(40), 16, 4)(7).images)
    assert len(EncoderBatches(numbered_store(5), 16, 3)(0).images) == 5


def test_a_mapped_store_equals_one_in_memory(tmp_path):
    index = build_index(write_classes(tmp_path / "data", {"a": 5, "b": 4}))
    ids = np.array([0, 2, 3, 7, 8])
    options = tiny_recipe(data={"size_px": 8}).data
    in_memory = build_store(index, ids, options, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    small = replace(options, memory_gib=0.0)
    mapped = build_store(index, ids, small, tmp_path / "cache")
    assert isinstance(mapped.pixels, np.memmap) and not isinstance(in_memory.pixels, np.memmap)
    assert np.array_equal(mapped.pixels, in_memory.pixels) and np.array_equal(mapped.image_ids, ids)
    assert torch.equal(mapped.tensor(np.array([4, 0])), in_memory.tensor(np.array([4, 0])))
    (file,) = (tmp_path / "cache").glob("*.npy")
    written = file.stat().st_mtime_ns
    again = build_store(index, ids, small, tmp_path / "cache")
    assert file.stat().st_mtime_ns == written and np.array_equal(again.pixels, in_memory.pixels)
    for damaged in (file, file.with_suffix(".json")):
        damaged.write_bytes(damaged.read_bytes()[:-3] + b"no!")
        again = build_store(index, ids, small, tmp_path / "cache")
        assert np.array_equal(again.pixels, in_memory.pixels)
    other = build_store(index, ids[1:], small, tmp_path / "cache")
    assert np.array_equal(other.pixels, in_memory.pixels[1:])
    assert in_memory.positions(np.array([7, 0])).tolist() == [3, 0]


class Counting(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("seen", torch.tensor(0))


def test_moving_average_by_hand():
    live = Counting(1.0)
    average = MovingAverage(live, 0.15)
    expected = 1.0
    for step, value in enumerate([2.0, 4.0, -3.0]):
        live.weight.data.fill_(value)
        live.seen.fill_(step + 1)
        average.update(live, step)
        decay = [0.1, 0.15, 0.15][step]  # 1/10, then 2/11 and 3/12 capped at 0.15
        expected = decay * expected + (1 - decay) * value
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-6)
        assert average.network.seen.item() == step + 1
        assert live.weight.item() == value
    assert not average.network.weight.requires_grad and not average.network.training


def test_moving_average_refuses_another_network():
    with pytest.raises(ValueError, match="other parameters"):
        MovingAverage(Counting(1.0), 0.9).update(nn.Linear(1, 1), 0)


def loop_options(**options: object) -> LoopOptions:
    defaults = {
        "steps": 7, "ema": 0.9, "log_every_steps": 2, "preview_every_steps": 3, "checkpoint_every_steps": 2,
        "threads": 1,
    }  # fmt: skip
    return LoopOptions(**{**defaults, **options})


def toy_trainer(poisoned_step: int = -1, kind: type[ToyTrainable] = ToyTrainable, **options: object) -> Trainer:
    return Trainer(kind(poisoned_step), loop_options(**options), CPU)


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, averages and optimiser state as one mapping of tensors."""
    tensors = weights_of(trainer.trainable.networks)
    tensors.update({f"averaged/{key}": value for key, value in weights_of(trainer.averaged_networks()).items()})
    for network, optimizer in trainer.optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            tensors.update({f"{network}/{number}/{key}": torch.as_tensor(v).clone() for key, v in values.items()})
    return tensors


def toy_observer(networks: dict[str, nn.Module]) -> Observation:
    total = sum(float(p.sum()) for p in networks["body"].parameters())
    return Observation({"look/sum": total}, Image.new("RGB", (4, 4), (int(abs(total) * 10) % 256, 0, 0)))


def run_toy(folder: Path, trainer: Trainer, batch_at=None, observer=toy_observer) -> TrainingLog:
    log = TrainingLog(folder / "logs", folder / "previews")
    folders = CheckpointFolder(folder / "checkpoints")
    train(trainer, batch_at or toy_batches(), folders, log, name="toy", observer=observer)
    return log


optimizers = pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])


@optimizers
def test_checkpoints_restore_everything_bit_for_bit(tmp_path, optimizer):
    options = OptimizerOptions(name=optimizer, beta1=0.5, weight_decay=0.01)
    trainer = toy_trainer(optimizer=options)
    folder, log = CheckpointFolder(tmp_path / "checkpoints"), TrainingLog(tmp_path / "logs", tmp_path / "previews")
    for step in range(4):
        trainer.step(toy_batches()(step), step)
    log.latest = {"look/sum": 0.25}
    folder.save(trainer.state(4), log)
    other, other_log = toy_trainer(optimizer=options), TrainingLog(tmp_path / "logs", tmp_path / "previews")
    with torch.no_grad():
        for parameter in other.trainable.networks["body"].parameters():
            parameter.add_(1)
    assert folder.restore(other.state(0), other_log) == 4 == folder.last_step()
    assert any("tail/" in key for key in everything(trainer))
    assert same_tensors(everything(trainer), everything(other))
    assert other_log.latest == {"look/sum": 0.25}
    for step in (4, 5):
        trainer.step(toy_batches()(step), step)
        other.step(toy_batches()(step), step)
    assert same_tensors(everything(trainer), everything(other))


def test_adam_takes_its_steps_in_one_kernel():
    trainer = toy_trainer(optimizer=OptimizerOptions(name="adam"))
    assert all(optimizer.defaults["fused"] for optimizer in trainer.optimizers.values())


def test_checkpoints_restore_a_method_in_channels_last(tmp_path):
    options = loop_options(memory_format="channels_last", optimizer=OptimizerOptions(name="adam"))

    def fresh() -> Trainer:
        return Trainer(make_method(tiny_recipe(), 2, seed=0), options, CPU)

    def step(trainer: Trainer, number: int) -> None:
        rng = torch.Generator().manual_seed(number)
        images = torch.rand(2, 2, 3, 8, 8, generator=rng) * 2 - 1
        trainer.step(PairBatch(images[0], torch.tensor([0, 1]), images[1], torch.tensor([1, 0])), number)

    trainer, restored, log = fresh(), fresh(), TrainingLog(tmp_path / "logs", tmp_path / "previews")
    for number in range(2):
        step(trainer, number)
    CheckpointFolder(tmp_path).save(trainer.state(2), log)
    CheckpointFolder(tmp_path).restore(restored.state(0), log)
    step(trainer, 2)
    step(restored, 2)
    assert same_tensors(everything(trainer), everything(restored))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run_toy(tmp_path, toy_trainer())
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert [path.name for path in folder.paths()] == ["step-00000006", "step-00000007"]
    assert sorted(path.name for path in folder.folder.iterdir()) == [path.name for path in folder.paths()]
    assert {path.suffix for path in folder.paths()[0].iterdir()} == {".safetensors", ".json"}


def damage(checkpoint: Path, how: str) -> None:
    name = "state.json" if "state" in how else "optimizer.safetensors" if "optimizer" in how else "weights.safetensors"
    data = bytearray((checkpoint / name).read_bytes())
    if "missing" in how:
        (checkpoint / name).unlink()
    elif "cut" in how:
        (checkpoint / name).write_bytes(data[: len(data) // 2])
    else:
        data[-3] ^= 0xFF
        (checkpoint / name).write_bytes(data)


damages = pytest.mark.parametrize(
    "how", ["bit in weights", "cut weights", "missing weights", "bit in optimizer", "cut state", "missing state"]
)


@damages
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, how):
    reference = toy_trainer()
    run_toy(tmp_path / "whole", reference)
    run_toy(tmp_path / "run", toy_trainer(steps=5))
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert [path.name for path in folder.paths()] == ["step-00000004", "step-00000005"]
    damage(folder.paths()[-1], how)
    trainer = toy_trainer()
    with pytest.warns(UserWarning, match="step-00000005.*falling back"):
        run_toy(tmp_path / "run", trainer)
    assert same_tensors(everything(trainer), everything(reference))
    assert [path.name for path in folder.paths()] == ["step-00000006", "step-00000007"]


def test_a_damaged_checkpoint_is_removed(tmp_path):
    run_toy(tmp_path, toy_trainer(steps=5))
    folder, log = CheckpointFolder(tmp_path / "checkpoints"), TrainingLog(tmp_path / "logs", tmp_path / "previews")
    damage(folder.paths()[-1], "cut weights")
    with pytest.warns(UserWarning, match="falling back"):
        assert folder.restore(toy_trainer().state(0), log) == 4
    assert [path.name for path in folder.paths()] == ["step-00000004"]


@damages
def test_only_damaged_checkpoints_are_an_error(tmp_path, how):
    run_toy(tmp_path, toy_trainer())
    folder, log = CheckpointFolder(tmp_path / "checkpoints"), TrainingLog(tmp_path / "logs", tmp_path / "previews")
    for path in folder.paths():
        damage(path, how)
    before = read_scalars(tmp_path / "logs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DamagedError, match="overwrite"):
            folder.restore(toy_trainer().state(0), log)
    assert read_scalars(tmp_path / "logs") == before, "nothing is thrown away"


def test_half_written_checkpoints_do_not_count(tmp_path):
    run_toy(tmp_path, toy_trainer(steps=4))
    folder = CheckpointFolder(tmp_path / "checkpoints")
    (folder.folder / ".step-00000009.77.partial").mkdir()
    assert folder.last_step() == 4
    assert CheckpointFolder(tmp_path / "nowhere").last_step() == 0


class Killed(BaseException):
    """Stands for a process that ends without any clean-up of ours."""


def dying_at(step: int):
    def before(number: int) -> None:
        if number == step:
            raise Killed

    return toy_batches(before=before)


@optimizers
@pytest.mark.parametrize("deaths", [(1,), (3,), (4,), (2, 5), (3, 3, 6)])
def test_interrupted_and_resumed_training_equals_undisturbed(tmp_path, optimizer, deaths):
    options = {
        "optimizer": OptimizerOptions(name=optimizer, beta1=0.5), "steps": 9, "checkpoint_every_steps": 4,
        "lr_decay": 0.6,
    }  # fmt: skip
    undisturbed = toy_trainer(**options)
    log = run_toy(tmp_path / "whole", undisturbed)
    for step in deaths:
        with pytest.raises(Killed):
            run_toy(tmp_path / "killed", toy_trainer(**options), dying_at(step))
    resumed = toy_trainer(**options)
    resumed_log = run_toy(tmp_path / "killed", resumed)
    assert same_tensors(everything(undisturbed), everything(resumed))
    found = read_scalars(tmp_path / "killed")
    assert found == read_scalars(tmp_path / "whole")
    assert len({(tag, step) for tag, step, _ in found}) == len(found)
    assert {tag for tag, _, _ in found} == {
        "logs/first/error", "logs/first/total", "logs/second/error", "logs/second/total", "logs/look/sum"
    }  # fmt: skip
    assert sorted(step for tag, step, _ in found if tag == "logs/first/error") == [2, 4, 6, 8, 9]
    assert sorted(step for tag, step, _ in found if tag == "logs/look/sum") == [3, 6, 9]
    assert resumed_log.latest == log.latest and log.latest.keys() == {"look/sum"}
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "previews").iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == killed and len(whole) == 3


def test_training_again_after_the_end_changes_nothing(tmp_path):
    first, second = toy_trainer(), toy_trainer()
    run_toy(tmp_path, first)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_toy(tmp_path, second, batch_at=dying_at(0))
    assert same_tensors(everything(first), everything(second))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_random_draws_of_a_step_depend_on_step_and_seed_alone():
    def draws(seed: int, *steps: int) -> list[tuple[float, ...]]:
        trainer = toy_trainer(seed=seed)
        for step in steps:
            trainer.step(toy_batches()(step), step)
        return [tuple(context.draws.uniform(3).tolist()) for context in trainer.trainable.contexts]

    assert draws(0, 0, 1) == draws(0, 0, 1) == list(reversed(draws(0, 1, 0)))
    found = {draw for seed in range(6) for draw in draws(seed, 0, 1, 2)}
    assert len(found) == 18, "other seeds give other draws"


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    trainer = toy_trainer()
    trainer.step(toy_batches()(0), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="step 3"):
        run_toy(tmp_path, toy_trainer(poisoned_step=3))
    healthy = toy_trainer(steps=2)
    run_toy(tmp_path / "healthy", healthy)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.last_step() == 2
    restored = toy_trainer()
    assert folder.restore(restored.state(0), TrainingLog(tmp_path / "logs", tmp_path / "previews")) == 2
    assert same_tensors(everything(restored), everything(healthy))


def test_divergence_is_seen_before_a_checkpoint_even_between_logs(tmp_path):
    with pytest.raises(DivergedError):
        run_toy(tmp_path, toy_trainer(poisoned_step=2, log_every_steps=100), observer=None)
    assert CheckpointFolder(tmp_path / "checkpoints").last_step() == 2


class Exploding(ToyTrainable):
    """Its weights become infinite at step 3 while its losses stay finite."""

    def forward(self, batch, context):
        if context.step == 3:
            self.networks["body"].bias.data[0] = float("inf")
        return super().forward(batch, context)

    def loss(self, phase, batch, outputs, context):
        value = self.networks["tail"][0].weight.sum() + self.networks["body"].weight.sum()
        return Loss(value, {"error": value})


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(DivergedError):
        run_toy(tmp_path, toy_trainer(kind=Exploding, log_every_steps=100), observer=None)
    assert CheckpointFolder(tmp_path / "checkpoints").last_step() == 2


def signalling_at(step: int, number: int = signal.SIGTERM):
    """Send a signal when a step's batch is made, and return once the main thread has seen it."""

    def before(made: int) -> None:
        if made == step:
            os.kill(os.getpid(), number)

    return toy_batches(before=before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_call_resumes(tmp_path, number):
    undisturbed, options = toy_trainer(steps=60), {"steps": 60, "checkpoint_every_steps": 50}
    run_toy(tmp_path / "whole", undisturbed)
    handler = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="saved") as caught:
        run_toy(tmp_path / "run", toy_trainer(**options), signalling_at(5, number))
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is handler
    assert 1 <= CheckpointFolder(tmp_path / "run" / "checkpoints").last_step() <= 8
    resumed = toy_trainer(**options)
    run_toy(tmp_path / "run", resumed)
    assert same_tensors(everything(resumed), everything(undisturbed))
    assert read_scalars(tmp_path / "run") == read_scalars(tmp_path / "whole")


class Signalling(ToyTrainable):
    """Sends a signal to its own process in step 2."""

    def forward(self, batch, context):
        if context.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch, context)


def test_a_signal_in_the_last_step_is_not_lost(tmp_path):
    """`fit` trains several models in turn: the next must not begin after a request to stop."""
    with pytest.raises(InterruptedRunError):
        run_toy(tmp_path, toy_trainer(kind=Signalling, steps=3))
    assert CheckpointFolder(tmp_path / "checkpoints").last_step() == 3


def test_training_works_outside_the_main_thread(tmp_path):
    trainer, failures = toy_trainer(), []

    def work() -> None:
        try:
            run_toy(tmp_path, trainer)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures and CheckpointFolder(tmp_path / "checkpoints").last_step() == 7


@pytest.mark.parametrize("every", [1, 3])
def test_lazy_penalties_are_asked_for_on_multiples_with_their_interval(every):
    trainer = toy_trainer(regularize_every_steps=every)
    for step in range(7):
        trainer.step(toy_batches()(step), step)
    assert [context.step for context in trainer.trainable.contexts] == list(range(7))
    expected = [float(every) if (step + 1) % every == 0 else 0.0 for step in range(7)]
    assert [context.regularize for context in trainer.trainable.contexts] == expected


@pytest.mark.parametrize(
    ("decay", "expected"),
    [(0.0, [1, 1, 1, 1]), (0.5, [1, 1, 1, 0.5]), (1.0, [1, 0.75, 0.5, 0.25])],
)
def test_learning_rates_fall_linearly_over_the_last_share_of_steps(decay, expected):
    trainer = toy_trainer(steps=4, lr_decay=decay)
    base = {name: optimizer.lr for name, optimizer in trainer.trainable.optimizers.items()}
    for step, factor in enumerate(expected):
        trainer.step(toy_batches()(step), step)
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()}
        assert rates == pytest.approx({name: lr * factor for name, lr in base.items()})


def test_phases_run_in_order_on_one_shared_forward_pass():
    calls = []

    class Recording(ToyTrainable):
        def forward(self, batch, context):
            calls.append("forward")
            return super().forward(batch, context)

        def loss(self, phase, batch, outputs, context):
            calls.append(phase)
            return super().loss(phase, batch, outputs, context)

    Trainer(Recording(), loop_options(), CPU).step(toy_batches()(0), 0)
    assert calls == ["forward", "first", "second"]


class TwoPhases(Trainable):
    """One number, whose gradient accumulates if it is not cleared."""

    def __init__(self) -> None:
        self.networks = {"only": Counting(0.0)}

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("one", ("only",)), Phase("two", ("only",)))

    @property
    def optimizers(self) -> dict[str, NetworkOptimizer]:
        return {"only": NetworkOptimizer(1e-3)}

    def loss(self, phase: str, batch: ToyBatch, outputs: None, context: StepContext) -> Loss:
        return Loss(self.networks["only"].weight.sum() * (2 if phase == "one" else 3), {})


def test_gradients_of_one_phase_do_not_enter_the_next():
    trainable = TwoPhases()
    trainer = Trainer(trainable, loop_options(optimizer=OptimizerOptions(weight_decay=0.0)), CPU)
    trainer.step(toy_batches()(0), 0)
    assert trainable.networks["only"].weight.grad.item() == 3.0


def test_choosing_a_precision_leaves_weights_and_leaves_no_auto():
    method = make_method(tiny_recipe(), 2, seed=0)
    images = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = PairBatch(images[0], torch.tensor([0, 1]), images[1], torch.tensor([1, 0]))
    before, training = weights_of(method.networks), {n: m.training for n, m in method.networks.items()}
    state = torch.get_rng_state()
    options, pairs = choose(method, loop_options(precision="auto", memory_format="auto"), CPU, batch)
    assert options.precision in ("fp32", "bf16") and options.memory_format in ("contiguous", "channels_last")
    assert replace(options, precision="auto", memory_format="auto") == loop_options(
        precision="auto", memory_format="auto"
    )
    assert len(pairs) == 3 - pairs[1].too_slow and all(made.ratio > 0 for made in pairs)
    assert (options.precision, options.memory_format) == (
        pairs[-1].winner.precision,
        pairs[-1].winner.memory_format,
    )
    assert same_tensors(before, weights_of(method.networks))
    assert {n: m.training for n, m in method.networks.items()} == training
    assert all(p.grad is None for network in method.networks.values() for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_choice_already_made_is_not_timed():
    fixed = loop_options(precision="fp32", memory_format="contiguous")
    assert choose(ToyTrainable(), fixed, CPU, None) == (fixed, [])


def test_only_what_is_auto_is_chosen():
    options, pairs = choose(ToyTrainable(), loop_options(precision="fp32", memory_format="auto"), CPU, toy_batches()(0))
    assert options.precision == "fp32" and [made.challenger.memory_format for made in pairs] == ["channels_last"]


class SlowOnSeveralThreads(ToyTrainable):
    """As a small network is while other work keeps a core busy."""

    def loss(self, phase, batch, outputs, context):
        time.sleep(0.03 if torch.get_num_threads() > 1 else 0.001)
        return super().loss(phase, batch, outputs, context)


def test_one_thread_is_chosen_where_more_are_slower(monkeypatch):
    monkeypatch.setattr(timing, "cpu_count", lambda: 2)
    before, fixed = torch.get_num_threads(), {"precision": "fp32", "memory_format": "contiguous"}
    options, pairs = choose(SlowOnSeveralThreads(), loop_options(threads=0, **fixed), CPU, toy_batches()(0))
    assert options.threads == 1 and [made.challenger.threads for made in pairs] == [1]
    assert "fp32 contiguous, 1 thread takes 0" in str(pairs[0]) and torch.get_num_threads() == before
    given, pairs = choose(SlowOnSeveralThreads(), loop_options(threads=2, **fixed), CPU, toy_batches()(0))
    assert given.threads == 2 and pairs == []


class SlowInFp32(ToyTrainable):
    """Much faster under autocast, where its loss is `factor` times as large."""

    factor = 1.0

    def loss(self, phase, batch, outputs, context):
        loss = super().loss(phase, batch, outputs, context)
        total = 1 + loss.total / 1000
        if outputs.dtype == torch.bfloat16:
            return Loss(total * self.factor, loss.terms)
        time.sleep(0.05)
        return Loss(total, loss.terms)


class Bf16Breaks(SlowInFp32):
    factor = 10.0


@pytest.mark.parametrize(("kind", "chosen"), [(SlowInFp32, "bf16"), (Bf16Breaks, "fp32")])
def test_bf16_is_chosen_when_it_is_faster_and_keeps_the_losses(kind, chosen):
    options, pairs = choose(kind(), loop_options(precision="auto", memory_format="contiguous"), CPU, toy_batches()(0))
    assert [(made.incumbent.precision, made.challenger.precision) for made in pairs] == [("fp32", "bf16")]
    assert pairs[0].ratio < 0.95 and pairs[0].agrees == (chosen == "bf16")
    assert options.precision == chosen


class SlowInBf16(ToyTrainable):
    """As on a processor without such arithmetic; in the first step, as where kernels are built then."""

    def __init__(self, in_first_step: float, after: float) -> None:
        super().__init__()
        self.seconds = [in_first_step, after]

    def loss(self, phase, batch, outputs, context):
        if outputs.dtype == torch.bfloat16:
            time.sleep(self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])
        else:
            time.sleep(0.02)
        return super().loss(phase, batch, outputs, context)


@pytest.mark.parametrize(("after", "tried"), [(0.4, 1), (0.12, 1), (0.0, 2)])
def test_a_precision_that_is_too_slow_in_one_layout_is_not_tried_in_another(after, tried):
    slow, options = SlowInBf16(0.5, after), loop_options(precision="auto", memory_format="auto")
    chosen, pairs = choose(slow, options, CPU, toy_batches()(0))
    of_bf16 = [made for made in pairs if made.challenger.precision == "bf16"]
    assert len(of_bf16) == tried and of_bf16[0].challenger.memory_format == of_bf16[0].incumbent.memory_format
    assert of_bf16[0].too_slow == (tried == 1) and (chosen.precision == "fp32" or tried == 2)


def translations(by_source: float, by_reference: float) -> torch.Tensor:
    """Pixels whose value is +-by_source for half of 4 sources, plus +-by_reference for half of 6 references."""
    sources = torch.tensor([1.0, -1.0, 1.0, -1.0]) * by_source
    references = torch.tensor([1.0, -1.0] * 3) * by_reference
    return (sources[:, None] + references[None, :])[:, :, None, None, None].expand(4, 6, 3, 2, 2)


@pytest.mark.parametrize(("by_source", "by_reference"), [(0.3, 0.2), (0.1, 0.4), (0.0, 0.5)])
def test_source_dependence_on_hand_made_translations(by_source, by_reference):
    measured = source_dependence(translations(by_source, by_reference))
    assert measured.over_sources == pytest.approx(by_source**2, rel=1e-5, abs=1e-9)
    assert measured.over_references == pytest.approx(by_reference**2, rel=1e-5)
    assert measured.ratio == pytest.approx((by_source / by_reference) ** 2, rel=1e-4, abs=1e-6)


def test_source_dependence_without_any_reference_effect_is_huge_and_finite():
    measured = source_dependence(translations(0.3, 0.0))
    assert measured.over_references == 0 and np.isfinite(measured.ratio) and measured.ratio > 1e6


def make_probe(seed: int = 0) -> Probe:
    images = torch.rand(2, PROBES, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Probe("poor", images[0], Conditions(torch.arange(PROBES) % 2, references=images[1]), images[1])


def test_every_source_meets_every_reference():
    method, probe = make_method(tiny_recipe(), 2, seed=0), make_probe()
    found = make_all(method, probe, CPU)
    assert found.shape == (PROBES, PROBES, 3, 8, 8)
    with torch.no_grad():
        codes = method.codes(probe.conditions)
        for source, reference in ((0, 0), (3, 7), (15, 2)):
            expected = method.make(probe.sources[source : source + 1], codes[reference : reference + 1])[0]
            torch.testing.assert_close(found[source, reference], expected, rtol=1e-3, atol=1e-5)


def test_observer_looks_at_the_averaged_weights_and_draws_a_grid():
    method, probe = make_method(tiny_recipe(), 2, seed=0), make_probe()
    before = weights_of(method.networks)
    averaged = {"generator": make_method(tiny_recipe(), 2, seed=1).networks["generator"]}
    observation = MethodObserver(method, (probe,), CPU)(averaged)
    expected = source_dependence(make_all(method.with_networks(averaged), probe, CPU))
    assert observation.scalars == {
        "source_dependence/poor": expected.ratio,
        "variance_over_sources/poor": expected.over_sources,
        "variance_over_references/poor": expected.over_references,
        "variance_share/poor": variance_share(make_all(method.with_networks(averaged), probe, CPU), probe.real),
    }
    plain = MethodObserver(method, (probe,), CPU)({})
    assert plain.scalars != observation.scalars
    # One row and one column of originals around 8 by 8 translations, enlarged to 32 px with gaps of 2.
    assert observation.grid.size == (9 * 34 + 2, 9 * 34 + 2)
    assert same_tensors(before, weights_of(method.networks))


def test_loop_state_survives_a_copy():
    trainer = toy_trainer()
    trainer.step(toy_batches()(0), 0)
    assert same_tensors(weights_of(copy.deepcopy(trainer.trainable).networks), weights_of(trainer.trainable.networks))
