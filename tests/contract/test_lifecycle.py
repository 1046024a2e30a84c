"""The way of every toy from data to a study: fit, kill, resume, generate, verify, evaluate, downstream, load."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import hashes_of, material_of, sample_fields
from cases import TOYS, recipe_of
from click.testing import CliRunner
from lifecycle import BALANCE, fit_case, generate_case
from safetensors.torch import load_file
from toys import weights_of, write_classes

import rebalance
from rebalance.cli.commands import root
from rebalance.config import dump_recipe
from rebalance.errors import InputError, InterruptedRunError
from rebalance.generation.loaded_run import load_run
from rebalance.learning.checkpoints import CheckpointFolder
from rebalance.learning.loop import Trainer
from rebalance.methods.base import BuildContext
from rebalance.training import RunDirectory
from rebalance.training.loading import trained_stage
from rebalance.training.stages import stages_of

TRAIN = {"a": 24, "b": 16, "poor": 5, "rare": 4}
each_toy = pytest.mark.parametrize("case", TOYS)
STAGE_NAMES = {
    "toy_directed": ("class-00002", "class-00003"),
    "toy_transfer": ("source", "joint"),
    "toy_wrapper": ("classifier", "joint"),
}


def names_of(case: str) -> tuple[str, ...]:
    """Return the stages of a case's run, in order."""
    return STAGE_NAMES.get(case, ("joint",))


EVERY_STAGE = [(case, number) for case in TOYS for number in range(len(names_of(case)))]


@pytest.fixture(scope="package")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lifecycle") / "data"
    write_classes(root / "train", TRAIN, seed=0)
    write_classes(root / "val", dict.fromkeys(TRAIN, 4), seed=1)
    write_classes(root / "test", dict.fromkeys(TRAIN, 6), seed=2)
    return root


@pytest.fixture(scope="package")
def run_of(data, tmp_path_factory):
    """Maps a case to a run that nothing disturbed, fitted once."""
    runs: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in runs:
            runs[case] = tmp_path_factory.mktemp(case) / "run"
            fit_case(case, data, runs[case])
        return runs[case]

    return run


@pytest.fixture(scope="package")
def out_of(run_of, tmp_path_factory):
    """Maps a case to the output that one process made of its run."""
    outs: dict[str, Path] = {}

    def out(case: str) -> Path:
        if case not in outs:
            outs[case] = tmp_path_factory.mktemp(case) / "out"
            generate_case(run_of(case), outs[case])
        return outs[case]

    return out


def checkpoint_bytes(run: Path) -> dict[str, bytes]:
    """Weights and optimisers of the last checkpoint of every stage."""
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in sorted((run / "checkpoints").iterdir())
        for file in sorted(CheckpointFolder(folder).paths()[-1].glob("*.safetensors"))
    }


def stop_at(monkeypatch, stop, call: int) -> None:
    """Call `stop` before the so-manieth step of a fit."""
    plain, calls = Trainer.step, []

    def step(self, batch, number):
        calls.append(number)
        if len(calls) == call:
            stop()
        return plain(self, batch, number)

    monkeypatch.setattr(Trainer, "step", step)


class KilledError(Exception):
    """The process died here."""


def die() -> None:
    raise KilledError


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@each_toy
def test_fit_trains_every_stage_to_its_end(case, run_of, data):
    run = run_of(case)
    names = names_of(case)
    assert {path.name for path in (run / "checkpoints").iterdir()} == set(names)
    before = checkpoint_bytes(run)
    again = fit_case(case, data, run)
    assert again.resumed and again.steps == dict.fromkeys(names, 3)
    assert checkpoint_bytes(run) == before
    translates = recipe_of(case).options.inputs.source
    dependence = [value for of_stage in again.source_dependence.values() for value in of_stage.values()]
    assert bool(dependence) == translates
    assert all(
        f"variance_share/{name}" in {**again.scalars[names[-1]], **again.scalars[names[0]]} for name in ("rare",)
    )
    assert all((run / "previews" / name).is_dir() for name in names if name not in ("source", "classifier"))


STOPS = [(die, 1, KilledError), (die, 3, KilledError), (terminate, 1, InterruptedRunError)]


@pytest.mark.parametrize(("stop", "step", "error"), STOPS)
@pytest.mark.parametrize(("case", "number"), EVERY_STAGE)
def test_a_run_stopped_in_any_stage_ends_with_the_same_bytes(case, number, stop, step, error, run_of, data, tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, stop, 3 * number + step)  # all stages have three steps, with a checkpoint after the second
        with pytest.raises(error):
            fit_case(case, data, run)
    assert not (run / "checkpoints" / names_of(case)[number] / "step-00000003").exists()
    assert fit_case(case, data, run).resumed
    assert checkpoint_bytes(run) == checkpoint_bytes(run_of(case))


@each_toy
def test_three_workers_make_the_bytes_of_one(case, run_of, out_of, tmp_path):
    result = generate_case(run_of(case), tmp_path / "out", workers=3)
    assert result.exit_code == 0
    assert hashes_of(tmp_path / "out") == hashes_of(out_of(case))


@pytest.fixture(scope="package")
def by_two_ranks(data, tmp_path_factory) -> Path:
    """Every toy fitted and generated by two processes of `torchrun`."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here, tests = Path(__file__).parent, Path(__file__).parent.parent
    path = os.pathsep.join([str(here), str(tests), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [*launcher, str(here / "ranks_driver.py"), str(data), str(folder), *TOYS],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "rank0" in line)
    return folder


@each_toy
def test_two_ranks_fit_as_one_process(case, run_of, by_two_ranks):
    for name in names_of(case):
        folders = [CheckpointFolder(run / "checkpoints" / name) for run in (run_of(case), by_two_ranks / case / "run")]
        alone, together = (load_file(folder.paths()[-1] / "weights.safetensors") for folder in folders)
        assert alone.keys() == together.keys()
        mine, other = (torch.cat([tensors[key].flatten() for key in alone]) for tensors in (alone, together))
        # RMSprop scales up gradients that are rounding errors alone.
        assert float((mine - other).norm() / mine.norm()) < 1e-3


@each_toy
def test_two_ranks_generate_the_bytes_of_one_process(case, by_two_ranks, tmp_path):
    generate_case(by_two_ranks / case / "run", tmp_path / "out")
    assert hashes_of(tmp_path / "out") == hashes_of(by_two_ranks / case / "out")


@each_toy
def test_records_name_what_an_image_was_made_of(case, out_of):
    inputs, fields = recipe_of(case).options.inputs, sample_fields(out_of(case))
    assert len(fields) == sum(BALANCE.values()) - TRAIN["poor"] - TRAIN["rare"]
    assert {one["method"] for one in fields} == {case}
    for one in fields:
        assert bool(one["source"]) == inputs.source and bool(one["reference"]) == inputs.references
        if inputs.source:
            assert f"/{one['source_class']}/" in one["source"] and one["source_class"] in ("a", "b")
        else:
            assert one["source_class"] == one["class"]


@each_toy
def test_latents_make_the_images_of_a_class_differ(case, out_of):
    images = {}
    for image, label in rebalance.load_shards(out_of(case)):
        images.setdefault(label, []).append(np.asarray(image))
    assert sorted(images) == [2, 3]
    assert all(np.var(np.stack(of_class), 0).max() > 0 for of_class in images.values())


@each_toy
def test_verify_finds_run_and_output_whole(case, run_of, out_of, tmp_path):
    assert rebalance.verify(run_of(case)).exit_code == 0
    assert rebalance.verify(out_of(case)).exit_code == 0
    damaged = Path(shutil.copytree(run_of(case), tmp_path / "run"))
    weights = next((damaged / "checkpoints" / names_of(case)[0]).glob("*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    result = rebalance.verify(damaged)
    assert result.exit_code == 1 and any(str(weights) in str(problem) for problem in result.problems)


@each_toy
def test_evaluate_compares_with_held_out_images(case, out_of, data):
    result = rebalance.evaluate(out_of(case), data, device="cpu", dimensions=4)
    assert {row.class_name for row in result.classes} == {"poor", "rare"}


@each_toy
def test_downstream_compares_three_arms(case, run_of, out_of, data, tmp_path):
    study = rebalance.StudyOptions(arms=("plain", "oversampling", "plain+filtered+xfull"), seeds=1)
    results = tmp_path / "study"
    result = rebalance.downstream(data, out_of(case), results=results, run=run_of(case), study=study, device="cpu")
    assert len(result.arms) == 3
    assert all(np.isfinite(arm.figures["balanced_accuracy"].mean) for arm in result.arms)


def test_the_command_line_does_the_whole_job(data, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_of("toy_label")))
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    commands = (
        ["plan", str(data), "--recipe", str(tmp_path / "recipe.yaml"), "--balance", '{"poor": 8}', "--quiet"],
        ["fit", str(data), "--run", run, "--recipe", str(tmp_path / "recipe.yaml"), "--balance", '{"poor": 8}'],
        ["generate", run, "--out", out, "--workers", "1"],
        ["verify", run],
        ["verify", out],
        ["evaluate", out, "--real", str(data), "--dimensions", "4"],
    )
    for command in commands:
        result = CliRunner().invoke(root, command)
        assert result.exit_code == 0, (command, result.output, result.exception)


# What single toys stand for.


@pytest.fixture(scope="package")
def without_val(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("without_val") / "data"
    write_classes(root / "train", {"a": 20, "b": 15, "poor": 6}, seed=0)
    write_classes(root / "test", {"a": 4, "b": 4, "poor": 4}, seed=1)
    return root


def fit_and_generate(case: str, data: Path, folder: Path, n: int) -> Path:
    recipe = recipe_of(case, data={"val_fraction": 0.2})
    rebalance.fit(data, folder / "run", recipe, balance={"poor": n}, device="cpu")
    generate_case(folder / "run", folder / "out")
    return folder / "out"


def test_images_of_a_source_that_a_seed_holds_out_leave_the_study(without_val, tmp_path):
    """A method without references leaks none of val through its sources."""
    material = material_of(without_val, fit_and_generate("toy_label", without_val, tmp_path, 40), 0.2)
    assert not any("may favour" in note for note in material.notes), "it is known what they were made from"
    every = len(material.pools["filtered"].rows)
    for seed in range(3):
        pools, held = material.of_seed(seed), material.held_out.ids(seed)
        used = material.made_from["filtered"][np.isin(material.pools["filtered"].rows, pools["filtered"].rows)]
        assert len(used) and not np.isin(used, held).any()
        assert (len(used) == every) == (seed == 0), "a run makes nothing of its own val images"


def test_images_from_a_latent_stay_in_the_study_with_a_note(without_val, tmp_path):
    material = material_of(without_val, fit_and_generate("toy_noise", without_val, tmp_path, 10), 0.2)
    assert any("may favour" in note for note in material.notes)
    assert all(len(material.of_seed(seed)["filtered"].rows) == 5 for seed in range(3))


def test_a_method_that_needs_no_source_takes_a_target_without_one(tmp_path):
    data = write_classes(tmp_path / "data", {"a": 9, "poor": 6})
    out = fit_and_generate("toy_noise", data, tmp_path, 9)
    assert [one["class"] for one in sample_fields(out)] == ["poor"] * 4, "one of six is held out as val"
    assert rebalance.plan(data, recipe_of("toy_noise"), balance={"poor": 9}).targets[0].sources == ()
    for case in ("toy_label", "toy_transfer"):
        with pytest.raises(InputError, match="no source"):
            rebalance.plan(data, recipe_of(case), balance={"poor": 9})


def test_the_second_stage_starts_from_the_weights_of_the_first(run_of, data, tmp_path, monkeypatch):
    run = RunDirectory(run_of("toy_transfer"))
    recipe, modalities = run.recipe(), run.modalities()
    source, main = stages_of(run.plan(), run.index(), recipe)
    earlier = {"source": trained_stage(run, source, modalities)}
    assert len(earlier["source"].labels) == 2
    labels = main.unit.labels(modalities)
    method = recipe.options.build(BuildContext(recipe, "main", labels, recipe.seed, earlier))
    first = earlier["source"].weights
    for name in ("generator", "painter", "critic"):
        kind = "averaged/" if f"averaged/{name}/" in " ".join(first) else ""
        for key, tensor in weights_of({name: method.module(name)}).items():
            assert torch.equal(tensor, first[f"{kind}{key}"]), key
    rows = [labels.index(modality) for modality in earlier["source"].labels]
    assert torch.equal(method.networks["classes"].weight[rows], first["averaged/classes/weight"])
    # And so does `fit` itself, before its first step.
    seen, plain = [], Trainer.step

    def step(self, batch, number):
        if number == 0:
            seen.append(weights_of({**self.trainable.networks, **self.trainable.frozen}))
        return plain(self, batch, number)

    monkeypatch.setattr(Trainer, "step", step)
    fit_case("toy_transfer", data, tmp_path / "run")
    assert torch.equal(seen[1]["generator/layer.weight"], first["averaged/generator/layer.weight"])
    last = load_file(CheckpointFolder(run.checkpoints("joint")).paths()[-1] / "weights.safetensors")
    assert torch.equal(last["frozen/painter/to_image.weight"], first["painter/to_image.weight"])


def test_one_model_a_target_has_the_labels_of_its_own(run_of):
    loaded = load_run(RunDirectory(run_of("toy_directed")), None, torch.device("cpu"))
    assert [model.unit.targets for model in loaded.models] == [("poor",), ("rare",)]
    assert all(model.labels[model.unit.targets[0]] == (2,) for model in loaded.models)


def test_stages_of_a_model_start_from_those_of_the_same_model(data, tmp_path):
    per_class = {"training": {"models": "per-class"}}
    shared = fit_case("toy_transfer", data, tmp_path / "shared", **per_class)
    assert list(shared.steps) == ["source", "class-00002", "class-00003"]
    own = fit_case("toy_transfer", data, tmp_path / "own", toy_transfer={"shared": False}, **per_class)
    assert list(own.steps) == ["class-00002-source", "class-00003-source", "class-00002", "class-00003"]
    for name in ("class-00002", "class-00003"):
        start, end = (
            load_file(CheckpointFolder(tmp_path / "own" / "checkpoints" / folder).paths()[-1] / "weights.safetensors")
            for folder in (f"{name}-source", name)
        )
        assert torch.equal(start["painter/to_image.weight"], end["frozen/painter/to_image.weight"])
    generate_case(tmp_path / "own", tmp_path / "out")
    assert rebalance.verify(tmp_path / "out").exit_code == 0


def test_a_wrapped_method_generates_as_itself(run_of, data, tmp_path):
    """With a weight of 0 the run holds the weights of the method alone, and its images are the same."""
    fit_case("toy_wrapper", data, tmp_path / "run", toy_wrapper={"weight": 0.0})
    weights = [
        load_file(CheckpointFolder(run / "checkpoints" / "joint").paths()[-1] / "weights.safetensors")
        for run in (tmp_path / "run", run_of("toy_translator"))
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
