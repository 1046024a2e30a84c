"""The same job on a CUDA device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toys import tiny_recipe, write_classes

import rebalance
from rebalance import OutputOptions, StudyOptions
from rebalance.config import Recipe, load_recipe
from rebalance.errors import InterruptedRunError
from rebalance.learning import loop as training_loop
from rebalance.learning.batches import ImageBatch, PairBatch
from rebalance.learning.loop import Trainer
from rebalance.learning.trainable import Trainable
from rebalance.methods.base import make_method
from rebalance.modalities import make_encoder
from rebalance.runtime.devices import choose_device
from rebalance.training import fit
from rebalance.training.decisions import encoder_loop
from rebalance.training.stages import loop_options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TINY = Path(__file__).parents[1] / "tiny.yaml"
POOR = {"poor": 15}


@pytest.fixture
def data(tmp_path) -> Path:
    return write_classes(tmp_path / "data", {"rich": 30, "poor": 5})


@pytest.fixture
def cuda() -> torch.device:
    return choose_device("cuda")


def _pairs(recipe: Recipe, n: int) -> PairBatch:
    shape, rng = (n, recipe.data.channels, recipe.data.size_px, recipe.data.size_px), torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    return PairBatch(torch.rand(shape, generator=rng) * 2 - 1, labels, torch.rand(shape, generator=rng) * 2 - 1, labels)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Refuse every operation that makes the processor wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _step_twice_without_waiting(trainer: Trainer, batch: PairBatch | ImageBatch) -> None:
    trainer.step(batch, 0)  # what is made once, such as the libraries' handles, may wait
    with _no_waiting():
        for number in (1, trainer.options.regularize_every_steps - 1):
            trainer.step(batch, number)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_and_generate_on_cuda(data, tmp_path, precision):
    overrides = (f"training.precision={precision}", "training.memory_format=channels_last", "training.steps=10")
    result = fit(data, tmp_path / "run", TINY, balance=POOR, device="cuda", overrides=overrides)
    assert result.steps == {"joint": 10}
    made = rebalance.generate(tmp_path / "run", tmp_path / "out", device="cuda")
    assert made.counts == {"poor": 10} and rebalance.verify(tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("name", ["gpu-128", "fashion-cpu", "paper-128"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_the_translator_waits_for_nothing(cuda, name, precision):
    changes = ["data.size_px=64", "balagan.diff_augment=[brightness,saturation,contrast,translation,cutout]"]
    recipe = load_recipe(name, [*changes, f"training.precision={precision}", "training.memory_format=channels_last"])
    method = make_method(recipe, 2, seed=0)
    _step_twice_without_waiting(
        Trainer(method, loop_options(recipe.training, recipe.seed), cuda), _pairs(recipe, 4).pin_memory()
    )


@pytest.mark.parametrize("by", ["contrastive", "vae"])
def test_a_step_of_the_encoder_waits_for_nothing(cuda, by):
    recipe = load_recipe("gpu-128", ["data.size_px=64", f"modalities.by={by}", "modalities.encoder.precision=bf16",
                                     "modalities.encoder.memory_format=channels_last"])  # fmt: skip
    batch = ImageBatch(_pairs(recipe, 16).source).pin_memory()
    _step_twice_without_waiting(Trainer(make_encoder(recipe), encoder_loop(recipe), cuda), batch)


def _losses(trainable: Trainable, recipe: Recipe, device: torch.device) -> list[float]:
    trainer, batch = Trainer(trainable, loop_options(recipe.training, recipe.seed), device), _pairs(recipe, 6)
    found = [trainer.step(batch, number) for number in range(3)]
    return [float(loss.total.detach()) for losses in found for loss in losses.values()]


@pytest.fixture
def no_tf32(cuda, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_losses_are_those_of_the_cpu(cuda, no_tf32):
    recipe = tiny_recipe(training={"regularize_every_steps": 2})
    expected, found = (
        _losses(make_method(recipe, 2, seed=0), recipe, device) for device in (torch.device("cpu"), cuda)
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_an_interrupted_fit_goes_on_where_it_stopped(data, tmp_path, monkeypatch):
    recipe = tiny_recipe(training={"steps": 12, "checkpoint_every_steps": 4})
    whole = fit(data, tmp_path / "whole", recipe, balance=POOR, device="cuda")
    step = training_loop.Trainer.step

    def stopping(self: Trainer, batch: PairBatch, number: int) -> object:
        if number == 6:
            raise InterruptedRunError("stopped", remedy="")
        return step(self, batch, number)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(training_loop.Trainer, "step", stopping)
        fit(data, tmp_path / "halves", recipe, balance=POOR, device="cuda")
    halves = fit(data, tmp_path / "halves", recipe, balance=POOR, device="cuda")
    assert halves.resumed
    for name, value in whole.scalars["joint"].items():
        assert halves.scalars["joint"][name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_images_do_not_depend_on_the_processes_that_make_them(data, tmp_path):
    fit(data, tmp_path / "run", TINY, balance=POOR, device="cuda", overrides=("training.steps=10",))
    for workers in (1, 2):
        rebalance.generate(
            tmp_path / "run",
            tmp_path / f"out-{workers}",
            device="cuda",
            workers=workers,
            output=OutputOptions(shard_size=4),
        )
    one, two = (sorted((tmp_path / f"out-{workers}").glob("*.tar")) for workers in (1, 2))
    assert len(one) == 3 and [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_modalities_filter_study_and_evaluation_run_on_cuda(tmp_path):
    data = tmp_path / "data"
    for split, counts in {"train": {"rich": 60, "poor": 12}, "test": {"rich": 12, "poor": 12}}.items():
        write_classes(data / split, counts, seed=len(split))
    recipe = tiny_recipe(
        data={"val_fraction": 0.2},
        modalities={
            "by": "contrastive", "min_images": 5, "encoder": {"steps": 4, "batch": 16, "width": 8, "blocks": [1, 1]},
        },
        filtering={"checks": ["memorised", "influence"], "pool_images": 32},
        downstream={"steps": 8, "width": 8},
    )  # fmt: skip
    fit(data, tmp_path / "run", recipe, balance={"poor": 40}, device="cuda")
    made = rebalance.generate(tmp_path / "run", tmp_path / "out", device="cuda")
    assert made.counts["poor"] > 0
    report = rebalance.evaluate(tmp_path / "out", real=data, device="cuda")
    assert [row.class_name for row in report.classes] == ["poor"]
    arms = ("oversampling", "oversampling+filtered+x1")
    study = rebalance.downstream(
        data, tmp_path / "out", run=tmp_path / "run", study=StudyOptions(arms, seeds=1), device="cuda"
    )
    assert [arm.name for arm in study.arms] == list(arms)
