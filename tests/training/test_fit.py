"""`fit` from a folder to a run: what it leaves, resuming, refusing, kills."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys import TINY_BALAGAN, tiny_recipe, write_classes

from rebalance import storage
from rebalance.config import Recipe, dump_recipe
from rebalance.errors import DamagedError, DivergedError, InputError, RefusedError
from rebalance.index import build_index
from rebalance.learning.logs import read_scalars
from rebalance.learning.loop import train
from rebalance.methods.balagan.method import Balagan
from rebalance.training import FitResult, RunDirectory, fit, load_method, stages_of, units_of

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"a": 24, "b": 16, "poor": 4, "rare": 3}
BALANCE = {"poor": 9, "rare": 9}
CONTRASTIVE = {
    "by": "contrastive", "k": 2,
    "encoder": {
        "width": 4, "blocks": [1, 1], "stem": "small", "projection": 4, "batch": 12, "steps": 6,
        "augmentations": ["crop", "flip"], "precision": "fp32", "memory_format": "contiguous",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("fit") / "data", COUNTS)


@pytest.fixture
def own_data(data, tmp_path) -> Path:
    """A copy of the data set to spoil."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> FitResult:
    """A finished run of the tiny recipe; not to be changed."""
    before = torch.get_num_threads()
    result = fit(data, tmp_path_factory.mktemp("finished") / "run", tiny_recipe(), balance=BALANCE)
    torch.set_num_threads(before)
    return result


@pytest.fixture
def own_run(finished, tmp_path) -> Path:
    """A copy of that run to spoil."""
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


def newest(run: Path, unit: str = "joint") -> Path:
    return sorted((run / "checkpoints" / unit).glob("step-*"))[-1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights(run: Path, unit: str = "joint") -> dict[str, torch.Tensor]:
    return load_file(newest(run, unit) / "weights.safetensors")


def contents(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def modality_rows(run: Path) -> list[dict]:
    return pq.read_table(run / "modalities.parquet").to_pylist()


def test_a_run_directory_holds_what_the_design_lists(finished):
    run = RunDirectory(finished.run)
    assert not finished.resumed and finished.seconds > 0
    assert finished.steps == {"joint": 4}
    assert {f"source_dependence/{name}" for name in BALANCE} <= finished.scalars["joint"].keys()
    assert run.recipe() == tiny_recipe()
    assert yaml.safe_load(run.recipe_path.read_text())["training"]["optimizer"]["beta2"] == 0.99, "every value is there"
    assert run.plan() == finished.plan
    assert run.plan().target("poor").n_final == 9 and run.plan().estimate is not None
    assert run.index().counts("train") == COUNTS
    assert {row["class"] for row in modality_rows(run.path)} == set(COUNTS)
    assert names(newest(run.path)) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    assert names(run.path / "checkpoints" / "joint") == ["step-00000002", "step-00000004"]
    assert names(run.path / "previews" / "joint") == ["step-0000002.png", "step-0000004.png"]
    assert names(run.path / "previews") == ["joint", "modalities.png"]
    found = {(tag, step) for tag, step, _ in read_scalars(run.path / "logs")}
    assert {("joint/source_dependence/poor", 4), ("joint/generator/reconstruction", 2)} <= found
    assert not list(run.path.rglob("*.partial"))
    assert finished.to_json()["plan"]["targets"][0]["n_synthetic"] == 5


def test_the_same_call_again_does_nothing(data, finished, own_run):
    before = contents(own_run)
    again = fit(data, own_run, tiny_recipe(), balance=BALANCE)
    assert again.resumed
    assert (again.steps, again.scalars, again.plan) == (finished.steps, finished.scalars, finished.plan)
    assert contents(own_run) == before


def test_a_run_resumes_with_another_classifier_for_its_studies(data, own_run):
    shutil.rmtree(newest(own_run))
    assert fit(data, own_run, tiny_recipe(downstream={"steps": 7}), balance=BALANCE).resumed
    assert newest(own_run).name == "step-00000004"


def test_a_run_resumes_when_its_data_set_has_moved(own_data, own_run):
    shutil.rmtree(newest(own_run))
    assert fit(own_data, own_run, tiny_recipe(), balance=BALANCE).resumed
    assert newest(own_run).name == "step-00000004"


def test_equal_requests_give_equal_runs_and_other_seeds_other_runs(data, finished, tmp_path):
    fit(data, tmp_path / "same", tiny_recipe(), balance=BALANCE)
    fit(data, tmp_path / "other", tiny_recipe(seed=1), balance=BALANCE)
    one, same, other = (
        newest(run) / "weights.safetensors" for run in (finished.run, tmp_path / "same", tmp_path / "other")
    )
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    assert read_scalars(finished.run) == read_scalars(tmp_path / "same")


def test_contrastive_modalities_split_the_sources(data, tmp_path):
    recipe = tiny_recipe(modalities=CONTRASTIVE)
    result = fit(data, tmp_path / "run", recipe, balance=BALANCE)
    assert result.plan.modalities == {"a": 2, "b": 2, "poor": 1, "rare": 1}
    rows = modality_rows(tmp_path / "run")
    assert len({(row["class"], row["modality"]) for row in rows}) == 6
    for name in ("a", "b"):
        numbers = [row["modality"] for row in rows if row["class"] == name]
        assert numbers.count(0) >= numbers.count(1) > 0 and len(numbers) == COUNTS[name]
    assert newest(tmp_path / "run", "encoder").name == "step-00000006"
    assert weights(tmp_path / "run")["discriminator/class_head.weight"].shape[0] == 6
    assert any(tag == "encoder/encoder/nt_xent" for tag, _, _ in read_scalars(tmp_path / "run"))


def test_per_class_gives_every_target_its_own_model(data, tmp_path):
    recipe = tiny_recipe(training={"models": "per-class", "steps": 2}, plan={"n_sources": 1})
    result = fit(data, tmp_path / "run", recipe, balance=BALANCE)
    assert result.steps == {"class-00002": 2, "class-00003": 2}
    for unit, target in (("class-00002", "poor"), ("class-00003", "rare")):
        assert [key for key in result.scalars[unit] if key.startswith("source_dep")] == [f"source_dependence/{target}"]
        assert weights(tmp_path / "run", unit)["discriminator/class_head.weight"].shape[0] == 2
        assert (tmp_path / "run" / "previews" / unit / "step-0000002.png").is_file()
    assert fit(data, tmp_path / "run", recipe, balance=BALANCE).resumed


@pytest.mark.parametrize("sections", [{}, {"balagan": {"target_in_training": False}}], ids=["all", "ablation-c"])
def test_every_label_is_drawn_with_images_of_its_own_modality(data, tmp_path, monkeypatch, sections):
    """What the loop is given: labels 0, 1, ... of each model stand for the modalities of its classes."""
    module, seen = sys.modules["rebalance.training.fitting"], {}

    def recording(trainer, batches, *rest, name, **options) -> None:
        seen[name] = batches
        train(trainer, batches, *rest, name=name, **options)

    monkeypatch.setattr(module, "train", recording)
    recipe = tiny_recipe(
        modalities=CONTRASTIVE, training={"models": "per-class", "steps": 1}, plan={"n_sources": 1}, **sections
    )
    fit(data, tmp_path / "run", recipe, balance=BALANCE)
    run = RunDirectory(tmp_path / "run")
    modalities = run.modalities()
    for unit in units_of(run.plan(), run.index(), recipe):
        batches, ids = seen[unit.name], unit.labels(modalities)
        assert tuple(pool.name for pool in batches.pools.classes) == unit.classes
        assert (unit.targets[0] in unit.classes) == (not sections)
        assert sorted(label for pool in batches.pools.classes for label in pool.labels) == list(range(len(ids)))
        for pool in batches.pools.classes:
            for label, positions in zip(pool.labels, pool.positions, strict=True):
                assert modalities.table[ids[label]].class_name == pool.name
                assert np.array_equal(batches.pools.store.image_ids[positions], modalities.images_of(ids[label]))


def test_a_target_can_be_left_out_of_training_as_in_ablation_c(data, tmp_path):
    recipe = tiny_recipe(balagan={"target_in_training": False}, training={"pairs": "all"})
    result = fit(data, tmp_path / "run", recipe, balance=BALANCE)
    sources = {source.name for target in result.plan.targets for source in target.sources}
    assert sources == {"a", "b"}
    run = RunDirectory(tmp_path / "run")
    (unit,) = units_of(run.plan(), run.index(), run.recipe())
    assert unit.classes == ("a", "b") and unit.targets == ("poor", "rare")
    assert weights(run.path)["discriminator/class_head.weight"].shape[0] == 2
    assert {"source_dependence/poor", "source_dependence/rare"} <= result.scalars["joint"].keys()


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"pairs": "all", "draw": "modalities", "steps": 2}, "modalities": {**CONTRASTIVE, "by": "vae"}},
        {
            "data": {"size_px": 16, "channels": 1, "memory_gib": 0.0},
            "training": {"steps": 2, "regularize_every_steps": 2},
        },
        {
            "modalities": {**CONTRASTIVE, "split_targets": True, "k_target": 2},
            "training": {"steps": 2},
            "balagan": {"class_codes": True},
        },
    ],
    ids=["vae-all-modalities", "gray-16-mapped", "balanced-class-codes"],
)
def test_other_recipes_train(data, tmp_path, sections):
    result = fit(data, tmp_path / "run", tiny_recipe(**sections), balance=BALANCE)
    assert result.steps == {"joint": 2}
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    if sections.get("modalities", {}).get("split_targets"):
        assert result.plan.modalities["poor"] == 2


def test_only_train_images_take_part(tmp_path):
    for seed, (split, counts) in enumerate({"train": COUNTS, "val": {"a": 5}, "test": {"a": 4, "poor": 2}}.items()):
        write_classes(tmp_path / "data" / split, counts, seed=seed)
    fit(tmp_path / "data", tmp_path / "run", tiny_recipe(training={"steps": 1}), balance=BALANCE)
    rows = modality_rows(tmp_path / "run")
    assert len(rows) == sum(COUNTS.values()) and all(row["path"].startswith("train/") for row in rows)


def test_a_carved_validation_split_takes_no_part(data, tmp_path):
    recipe = tiny_recipe(data={"val_fraction": 0.25}, training={"steps": 1})
    result = fit(data, tmp_path / "run", recipe, balance={"poor": 9})
    index = RunDirectory(tmp_path / "run").index()
    assert index.counts("val") == {"a": 6, "b": 4, "poor": 1, "rare": 0}
    used = {row["id"] for row in modality_rows(tmp_path / "run")}
    assert not used & set(np.flatnonzero(index.column("split") == "val").tolist())
    assert result.plan.target("poor").n_real == 3


def test_auto_is_decided_once_and_written_down(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["rebalance.training.decisions"], "cpu_count", lambda: 1)
    encoder = {**CONTRASTIVE["encoder"], "precision": "auto", "memory_format": "auto"}
    recipe = tiny_recipe(
        training={"precision": "auto", "memory_format": "auto", "threads": 0, "steps": 1},
        modalities={**CONTRASTIVE, "encoder": encoder},
    )
    fit(data, tmp_path / "run", recipe, balance=BALANCE)
    chosen = RunDirectory(tmp_path / "run").recipe()
    for section in (chosen.training, chosen.modalities.encoder):
        assert section.precision in ("fp32", "bf16") and section.memory_format in ("contiguous", "channels_last")
    assert chosen.training.threads == 1
    assert fit(data, tmp_path / "run", recipe, balance=BALANCE).resumed


@pytest.mark.parametrize(
    ("sections", "request_", "named"),
    [
        ({"training": {"steps": 5}}, {}, r"training\.steps: 4 -> 5"),
        ({"balagan": {"lr_generator": 0.5}}, {}, r"balagan\.lr_generator"),
        ({"training": {"precision": "bf16"}}, {}, r"training\.precision: 'fp32' -> 'bf16'"),
        ({"seed": 5}, {}, "seed: 0 -> 5"),
        ({}, {"balance": {"poor": 8, "rare": 9}}, "`balance`"),
        ({}, {"max_multiple": 1.0}, "`max_multiple`"),
    ],
)
def test_another_request_is_refused_by_name(data, finished, sections, request_, named):
    before = contents(finished.run)
    with pytest.raises(RefusedError, match=named) as caught:
        fit(data, finished.run, tiny_recipe(**sections), **{"balance": BALANCE, **request_})
    assert caught.value.exit_code == 4 and "`overwrite=True`" in str(caught.value)
    assert contents(finished.run) == before


def add_file(data: Path) -> str:
    name = "a/new.png"
    (data / name).write_bytes((data / "b" / "000.png").read_bytes())
    return name


def change_file(data: Path) -> str:
    name = "poor/001.png"
    (data / name).write_bytes((data / "b" / "000.png").read_bytes())
    return name


def remove_file(data: Path) -> str:
    name = "rare/002.png"
    (data / name).unlink()
    return name


def break_file(data: Path) -> str:
    name = "a/003.png"
    (data / name).write_bytes(b"no image any more")
    return name


@pytest.mark.parametrize("change", [add_file, change_file, remove_file, break_file])
def test_another_data_set_is_refused_by_file(own_data, finished, change):
    name = change(own_data)
    with pytest.raises(RefusedError, match=name) as caught:
        fit(own_data, finished.run, tiny_recipe(), balance=BALANCE)
    assert caught.value.exit_code == 4


def test_overwrite_starts_again(data, own_run, tmp_path):
    (own_run / "checkpoints" / "encoder" / "step-00000009").mkdir(parents=True)
    other = tiny_recipe(seed=7, training={"steps": 2})
    result = fit(data, own_run, other, balance={"poor": 6}, overwrite=True)
    assert not result.resumed and result.steps == {"joint": 2}
    assert RunDirectory(own_run).recipe() == other and RunDirectory(own_run).plan().balance == '{"poor": 6}'
    assert names(own_run / "checkpoints") == ["joint"] and names(own_run / "checkpoints" / "joint") == ["step-00000002"]
    assert names(own_run / "previews" / "joint") == ["step-0000002.png"]
    assert {step for _, step, _ in read_scalars(own_run)} == {2}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_and_left_alone(data, tmp_path, overwrite):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RefusedError, match=r"thesis\.txt"):
        fit(data, tmp_path / "mine", tiny_recipe(), balance=BALANCE, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["logs/app.log", "checkpoints/other-project.pt", "cache/index.bin"])
def test_a_foreign_folder_with_familiar_names_is_refused_too(data, tmp_path, name):
    """Common folder names do not make a run; nobody asked to delete anything."""
    precious = tmp_path / "mine" / name
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(RefusedError):
        fit(data, tmp_path / "mine", tiny_recipe(), balance=BALANCE)
    assert precious.read_text() == "years of work"


def test_two_processes_cannot_share_a_run(data, tmp_path):
    with storage.locked(tmp_path / "run"), pytest.raises(RefusedError, match="another process"):
        fit(data, tmp_path / "run", tiny_recipe(), balance=BALANCE)


def test_one_class_only_fails_clearly(tmp_path):
    write_classes(tmp_path / "data", {"a": 6})
    with pytest.raises(InputError, match="two classes"):
        fit(tmp_path / "data", tmp_path / "run", tiny_recipe())


def test_a_class_of_one_image_works(tmp_path):
    write_classes(tmp_path / "data", {"a": 12, "one": 1})
    recipe = tiny_recipe(data={"val_fraction": 0.5})
    result = fit(tmp_path / "data", tmp_path / "run", recipe)
    assert result.plan.target("one").n_real == 1 and result.plan.target("one").n_final == 6
    assert result.steps == {"joint": 4}


def test_an_empty_class_is_named(tmp_path):
    write_classes(tmp_path / "data", {"a": 12, "empty": 0})
    with pytest.raises(InputError, match="empty"):
        fit(tmp_path / "data", tmp_path / "run", tiny_recipe())


def test_a_failed_beginning_leaves_nothing_in_the_way(data, tmp_path):
    with pytest.raises(InputError, match="nobody"):
        fit(data, tmp_path / "run", tiny_recipe(), balance={"nobody": 4})
    assert not fit(data, tmp_path / "run", tiny_recipe(), balance=BALANCE).resumed


def test_seed_and_overrides_count_for_a_loaded_recipe_too(data, tmp_path):
    fit(data, tmp_path / "run", tiny_recipe(), balance=BALANCE, seed=3, overrides=["training.steps=1"])
    recipe = RunDirectory(tmp_path / "run").recipe()
    assert recipe.seed == 3 and recipe.training.steps == 1


def test_a_loaded_method_has_the_averaged_weights(finished):
    run = RunDirectory(finished.run)
    recipe, modalities = run.recipe(), run.modalities()
    (stage,) = stages_of(run.plan(), run.index(), recipe)
    method, digest = load_method(run, stage, modalities, recipe, torch.device("cpu"))
    saved = weights(run.path)
    for name, prefix in (("generator", "averaged/generator/"), ("discriminator", "discriminator/")):
        network = method.networks[name]
        assert all(torch.equal(saved[prefix + key], tensor) for key, tensor in network.state_dict().items())
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    key = "generator/decoder.to_image.weight"
    assert not torch.equal(saved[f"averaged/{key}"], saved[key])
    assert digest == storage.sha256_file(newest(run.path) / "weights.safetensors")


def test_an_unfinished_run_has_no_method_to_load(finished):
    run, longer = RunDirectory(finished.run), tiny_recipe(training={"steps": 9})
    (stage,) = stages_of(run.plan(), run.index(), longer)
    with pytest.raises(InputError, match="step 4 of 9"):
        load_method(run, stage, run.modalities(), longer, torch.device("cpu"))


def test_a_damaged_last_checkpoint_is_made_again(data, own_run):
    path = newest(own_run) / "weights.safetensors"
    expected = path.read_bytes()
    path.write_bytes(expected[:-4] + b"oops")
    with pytest.warns(UserWarning, match="falling back"):
        fit(data, own_run, tiny_recipe(), balance=BALANCE)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("name", ["plan.json", "index.parquet"])
def test_a_damaged_run_is_named(data, own_run, name):
    (own_run / name).write_bytes(b"{")
    with pytest.raises(DamagedError, match=name):
        fit(data, own_run, tiny_recipe(), balance=BALANCE)


LONG = {"steps": 32, "checkpoint_every_steps": 4, "log_every_steps": 3, "preview_every_steps": 10}


@pytest.fixture(scope="module")
def long_recipe() -> Recipe:
    encoder = {**CONTRASTIVE["encoder"], "steps": 20}
    return tiny_recipe(training=LONG, modalities={**CONTRASTIVE, "encoder": encoder})


@pytest.fixture(scope="module")
def undisturbed(data, long_recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    before = torch.get_num_threads()
    fit(data, run, long_recipe, balance=BALANCE)
    torch.set_num_threads(before)
    return run


def start_fit(data: Path, run: Path, recipe: Recipe) -> subprocess.Popen:
    path = run.parent / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    command = [
        sys.executable, "-m", "rebalance", "fit", str(data), "--run", str(run), "--recipe", str(path), "--balance",
        '{"poor": 9, "rare": 9}', "--device", "cpu", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def stop_when(process: subprocess.Popen, reached: Callable[[], bool], number: int) -> int:
    """Send a signal once a condition holds, and return the exit code."""
    while not reached():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def step_of(run: Path, unit: str) -> int:
    return max((int(p.name.removeprefix("step-")) for p in (run / "checkpoints" / unit).glob("step-*")), default=0)


def assert_same_run(run: Path, undisturbed: Path) -> None:
    for unit in ("encoder", "joint"):
        for name in ("weights.safetensors", "optimizer.safetensors"):
            assert (newest(run, unit) / name).read_bytes() == (newest(undisturbed, unit) / name).read_bytes(), unit
    assert modality_rows(run) == modality_rows(undisturbed)
    found = read_scalars(run)
    assert found == read_scalars(undisturbed)
    assert len({(tag, step) for tag, step, _ in found}) == len(found)
    assert not list(run.rglob("*.partial"))


def test_sigterm_exits_130_and_the_same_command_resumes(data, long_recipe, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start_fit(data, run, long_recipe)
    assert stop_when(process, lambda: step_of(run, "joint") >= 8, signal.SIGTERM) == 130
    stopped = step_of(run, "joint")
    assert 8 <= stopped < LONG["steps"]
    result = fit(data, run, long_recipe, balance=BALANCE)
    assert result.resumed and result.steps == {"joint": LONG["steps"]}
    assert_same_run(run, undisturbed)


def test_the_index_of_a_run_is_the_one_it_was_trained_on(data, finished):
    run = RunDirectory(finished.run)
    assert run.index().fingerprint == build_index(data).fingerprint
    assert len(run.modalities().image_ids) == sum(COUNTS.values())


@pytest.mark.parametrize("name", ["digits-cpu", "fashion-cpu"])
def test_recipes_for_small_pictures_fit_as_they_are_but_for_their_length(data, tmp_path, name):
    quick = ["training.steps=2", "modalities.encoder.steps=2", "training.precision=fp32", "training.threads=1",
             "training.memory_format=contiguous", "modalities.encoder.precision=fp32",
             "modalities.encoder.memory_format=contiguous"]  # fmt: skip
    result = fit(data, tmp_path / "run", name, balance=BALANCE, overrides=quick)
    tags = {tag for tag, _, _ in read_scalars(result.run)}
    assert result.steps == {"joint": 2}
    assert {"joint/generator/spread", "joint/generator/adversarial", "joint/discriminator/adversarial"} <= tags


@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_an_absurd_learning_rate_ends_with_a_message_or_finite_weights(data, tmp_path, lr):
    recipe = tiny_recipe(balagan={**TINY_BALAGAN, "lr_generator": lr, "lr_discriminator": lr}, training={"steps": 12})
    try:
        fit(data, tmp_path / "run", recipe, balance=BALANCE)
    except DivergedError as error:
        assert "lower learning rate" in str(error)
    for checkpoint in (tmp_path / "run" / "checkpoints" / "joint").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "weights.safetensors").values())


def test_a_collapsed_generator_is_reported(data, tmp_path, monkeypatch, caplog):
    def constant(self, sources, codes):
        return torch.zeros_like(sources)

    monkeypatch.setattr(Balagan, "make", constant)
    result = fit(data, tmp_path / "run", tiny_recipe(), balance=BALANCE)
    assert result.scalars["joint"]["variance_share/rare"] == 0
    assert all(f"target '{name}': the generator has collapsed" in caplog.text for name in BALANCE)
    caplog.clear()
    monkeypatch.setattr(Balagan, "make", lambda self, sources, codes: sources)
    fit(data, tmp_path / "copies", tiny_recipe(), balance=BALANCE)
    assert "collapsed" not in caplog.text
