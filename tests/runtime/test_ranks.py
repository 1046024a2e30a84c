"""Several processes of `torchrun` on one run or output: as one process with the whole batch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import TINY_BALAGAN, tiny_recipe, write_classes

from rebalance import FilterChoice, OutputOptions, generate
from rebalance.config import dump_recipe
from rebalance.errors import InputError
from rebalance.learning.logs import read_scalars
from rebalance.networks.augmentations import diff_augment
from rebalance.runtime.draws import Draws
from rebalance.runtime.ranks import Ranks
from rebalance.storage import sha256_file
from rebalance.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

BALANCE = '{"poor": 9, "rare": 9}'
STEPS = 12
# Everything that looks at more than one image of a batch: pairs that are compared, penalties, augmentation, clusters.
RECIPE = tiny_recipe(
    modalities={
        "by": "contrastive", "k": 2,
        "encoder": {
            "width": 4, "blocks": [1, 1], "stem": "small", "projection": 4, "batch": 12, "steps": 4,
            "augmentations": ["crop", "flip"], "precision": "fp32", "memory_format": "contiguous",
        },
    },
    balagan={
        **TINY_BALAGAN, "weights": {"spread": 1.0}, "diff_augment": ["translation", "brightness"],
        "class_codes": True, "reference_patch_shuffle": 2,
    },
    training={"batch": 8, "steps": STEPS, "regularize_every_steps": 2, "log_every_steps": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("ranks") / "data", {"a": 24, "b": 16, "poor": 4, "rare": 3})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(RECIPE))
    return path


@pytest.fixture(scope="module")
def alone(data, recipe, tmp_path_factory) -> Path:
    """A run of one process, without saving in between."""
    before = torch.get_num_threads()
    run = tmp_path_factory.mktemp("alone") / "run"
    fit(data, run, recipe, balance={"poor": 9, "rare": 9})
    torch.set_num_threads(before)
    return run


@pytest.fixture(scope="module")
def together(data, recipe, tmp_path_factory) -> Path:
    """The same run of two processes."""
    run = tmp_path_factory.mktemp("together") / "run"
    result = Launched("fit", data, "--run", run, "--recipe", recipe, "--balance", BALANCE, "--json").wait_for(0)
    assert result.stdout.count('"steps": {"joint": 12}') == 1, "only the first process speaks"
    return run


class Launched:
    """`torchrun --nproc-per-node 2 -m rebalance ...` in a process group of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
        self.process = subprocess.Popen(
            [*command, "rebalance", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_for(self, code: int) -> subprocess.CompletedProcess:
        """Wait until all have ended; torchrun's own exit code is 1 when any of them failed."""
        out, err = self.process.communicate(timeout=240)
        assert self.process.returncode == code, err
        return subprocess.CompletedProcess(self.process.args, code, out, err)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "joint" / f"step-{STEPS:08d}" / "weights.safetensors")


def assert_same_but_for_rounding(first: Path, second: Path) -> None:
    """Compare the losses of every step, every look, and the weights."""
    expected, found = (read_scalars(run / "logs" / "joint") for run in (first, second))
    assert [(tag, step) for tag, step, _ in found] == [(tag, step) for tag, step, _ in expected]
    assert len({tag for tag, _, _ in expected}) > 10
    for (tag, step, value), (_, _, wanted) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, rel=2e-3, abs=2e-4), (tag, step)
    # Together: a bias before a normalisation has a gradient of rounding errors alone, which RMSprop scales up.
    mine, other = (torch.cat([tensor.flatten() for tensor in weights(run).values()]) for run in (first, second))
    assert float((mine - other).norm() / mine.norm()) < 1e-3


def test_two_processes_train_as_one_with_the_whole_batch(alone, together):
    assert_same_but_for_rounding(alone, together)
    assert not (together / "cache").exists()
    same = ("modalities.parquet", "recipe.yaml", "plan.json")
    changed = [name for name in same if (alone / name).read_bytes() != (together / name).read_bytes()]
    # Only what was measured on the way, which is no decision.
    assert changed in ([], ["plan.json"])


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_run_resumes_with_another_number_of_processes(data, recipe, alone, together, tmp_path, first):
    begun_by = {"one": alone, "two": together}[first]
    run = Path(shutil.copytree(begun_by, tmp_path / "run"))
    checkpoints = run / "checkpoints" / "joint"
    shutil.rmtree(checkpoints / f"step-{STEPS:08d}")
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{STEPS - 2:08d}"]
    if first == "one":
        Launched("fit", data, "--run", run, "--recipe", recipe, "--balance", BALANCE).wait_for(0)
    else:
        fit(data, run, recipe, balance={"poor": 9, "rare": 9})
    assert_same_but_for_rounding(alone, run)


def test_processes_that_are_stopped_save_once_and_resume(data, recipe, alone, tmp_path):
    run = tmp_path / "run"
    command = ("fit", data, "--run", run, "--recipe", recipe, "--balance", BALANCE)
    stopped = Launched(*command)
    deadline = time.monotonic() + 120
    while not any((run / "checkpoints" / "joint").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.process.send_signal(signal.SIGTERM)
    stopped.process.communicate(timeout=120)
    assert any((run / "checkpoints" / "joint").glob("step-*"))
    Launched(*command).wait_for(0)
    assert_same_but_for_rounding(alone, run)


def test_a_batch_that_cannot_be_shared_is_refused_by_all(data, recipe, tmp_path):
    result = Launched(
        "fit", data, "--run", tmp_path / "run", "--recipe", recipe, "--balance", BALANCE, "--set", "training.batch=6"
    ).wait_for(1)
    assert "training.batch with 2 processes; got 6; allowed: multiples of 4." in result.stderr


def test_an_error_of_the_first_process_ends_all(data, tmp_path):
    result = Launched("fit", data, "--run", tmp_path / "run", "--balance", '{"poor": 2}').wait_for(1)
    assert result.stderr.count("Error: --balance") == 1
    assert "the first process stopped" in result.stderr


def test_shards_made_by_two_processes_have_the_same_bytes(together, tmp_path):
    expected, found = tmp_path / "expected", tmp_path / "found"
    limits = FilterChoice(min_confidence=0.0, max_similarity=1.0, keep=0.9)
    generate(together, expected, output=OutputOptions(shard_size=3), filtering=limits)
    shutil.rmtree(together / "calibration")
    asked = ("--min-confidence", 0, "--max-similarity", 1, "--keep", 0.9)
    result = Launched(
        "generate", together, "--out", found, "--shard-size", 3, "--workers", 1, "--json", *asked
    ).wait_for(0)
    names = sorted(path.name for path in expected.iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in found.iterdir() if not path.name.startswith("."))
    assert {n: sha256_file(found / n) for n in names} == {n: sha256_file(expected / n) for n in names}
    assert len([name for name in names if name.endswith(".tar")]) == 4
    assert result.stdout.count('"complete": true') == 1
    assert '"made": 4' in result.stdout


@pytest.mark.parametrize("count", [2, 4])
def test_processes_draw_what_one_draws_for_the_whole_batch(count):
    rows = 8 // count
    images = torch.randn(16, 3, 8, 8)
    policy = ("brightness", "saturation", "contrast", "translation", "cutout")
    # Two batches of eight in one tensor, as real and synthetic images lie in it.
    whole = diff_augment(images, policy, 0.25, Draws(5)).unflatten(0, (2, 8))
    for number in range(count):
        own = slice(number * rows, (number + 1) * rows)
        share = images.unflatten(0, (2, 8))[:, own].flatten(0, 1)
        found = diff_augment(share, policy, 0.25, Draws(5, Ranks(number, count), rows))
        assert torch.equal(found.unflatten(0, (2, rows)), whole[:, own])


@pytest.mark.parametrize("draw", [lambda d: d.uniform(6, 2), lambda d: d.normal(6, 2), lambda d: d.integers(0, 9, 6)])
def test_draws_come_in_the_shape_that_is_asked_for_and_differ_between_processes(draw):
    first, second = (draw(Draws(1, Ranks(number, 2), 3)) for number in range(2))
    assert first.shape == draw(Draws(1)).shape
    assert not torch.equal(first, second)


def test_rows_that_are_no_multiple_of_the_batch_cannot_be_drawn():
    with pytest.raises(ValueError, match="7 rows are no multiple of the 3 images"):
        Draws(0, Ranks(0, 2), 3).uniform(7)


def test_rows_are_shared_out_evenly_or_refused():
    assert [Ranks(number, 4).share_of(16, "batch", 2) for number in range(4)] == [
        slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16),
    ]  # fmt: skip
    with pytest.raises(InputError, match="batch with 4 processes; got 12; allowed: multiples of 8"):
        Ranks(0, 4).share_of(12, "batch", 2)


def test_a_process_alone_talks_to_nobody():
    ranks, tensor = Ranks(), torch.ones(3)
    ranks.average([tensor])
    ranks.wait()
    assert ranks.total(tensor) is tensor and ranks.any(True) and not ranks.any(False)
    assert ranks.first_does(lambda: 7) == 7
