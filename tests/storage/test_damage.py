"""Any file of a run or an output that is changed, cut or removed is noticed and named, and nothing else is lost."""

import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import generate, tiny_recipe, write_classes

import rebalance
from rebalance import storage
from rebalance.errors import RebalanceError
from rebalance.learning.loop import Trainer
from rebalance.modalities import Modalities
from rebalance.training import fit
from rebalance.training.fitting import Fitting

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"a": 24, "b": 16, "poor": 4}
BALANCE = {"poor": 16}
RECIPE = tiny_recipe(
    training={"steps": 8},
    filtering={"pool_images": 8, "floor_draws": 2, "dimensions": 2},
    generation={"batch": 4, "threads": 1},
)
GENERATION = {"shard_size": 6, "max_fid": "1000x", "device": "cpu"}


def flip(path: Path, rng: random.Random) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Keep a part of the beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES = (flip, cut, remove)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with data, an unfinished run, the same run finished, and an output of it."""
    root, before = tmp_path_factory.mktemp("damage"), torch.get_num_threads()
    torch.set_num_threads(1)
    data, step = write_classes(root / "data", COUNTS), Trainer.step

    def dies(trainer: Trainer, batch: object, number: int) -> object:
        if number == 5:
            raise KeyboardInterrupt
        return step(trainer, batch, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", dies)
        fit(data, root / "begun", RECIPE, balance=BALANCE)
    fit(data, root / "run", RECIPE, balance=BALANCE)
    generate(root / "run", root / "out", **GENERATION)
    torch.set_num_threads(before)
    return root


def everything(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    assert len(found) > 8
    return found


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    found = (path for path in folder.rglob(pattern) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def noticed(path: Path, folder: Path) -> bool:
    """Whether `verify` finds fault with a file and names it, or the checkpoint that it is of."""
    named = {path.name, path.parent.name} if "checkpoints" in path.parts else {path.name}
    try:
        problems = rebalance.verify(folder).problems
    except RebalanceError as error:
        return path.name in str(error)
    return any(name in f"{problem.file} {problem.what}" for problem in problems for name in named)


@pytest.mark.parametrize("place", ["begun", "run", "out"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_notices_damage_to_any_file(made, tmp_path, place, damage):
    folder, rng = Path(shutil.copytree(made / place, tmp_path / place)), random.Random(0)
    before = rebalance.verify(folder)
    assert before.exit_code == 0
    assert getattr(before, "unfinished", ()) == (("joint",) if place == "begun" else ())
    for path in everything(folder):
        if damage is remove and path.parent.name == "calibration":
            continue  # it is measured again when it is asked for
        whole = path.read_bytes()
        for _ in range(1 if damage is remove else 4):
            damage(path, rng)
            assert noticed(path, folder), f"{damage.__name__} of {path.relative_to(folder)}"
            path.write_bytes(whole)
    assert rebalance.verify(folder).exit_code == 0


def attempt(call: Callable[[], object]) -> str:
    """Return the message of an error that the package raises on purpose, "" when there is none."""
    try:
        call()
    except RebalanceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_notices_damage_to_any_file(made, tmp_path, damage, caplog):
    rng, weights = random.Random(1), contents(made / "run", "step-00000008/*.safetensors")
    for number, path in enumerate(everything(made / "begun")):
        run = Path(shutil.copytree(made / "begun", tmp_path / str(number)))
        inside = path.relative_to(made / "begun")
        damage(run / inside, rng)
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            message = attempt(lambda run=run: fit(made / "data", run, RECIPE, balance=BALANCE))
        heard = " ".join([message, caplog.text, *(str(warning.message) for warning in warned)])
        step = inside.parent.name if "checkpoints" in inside.parts else inside.name
        assert step in heard, f"{damage.__name__} of {inside}"
        assert message or contents(run, "step-00000008/*.safetensors") == weights


@pytest.mark.parametrize("damage", DAMAGES)
def test_generating_notices_damage_to_any_file_that_it_reads(made, tmp_path, damage, caplog):
    rng, expected = random.Random(2), contents(made / "out")
    newest = "checkpoints/joint/step-00000008"
    read = {"hashes.json", "recipe.yaml", "plan.json", "index.parquet", "modalities.parquet"}
    for number, path in enumerate(everything(made / "run")):
        run = Path(shutil.copytree(made / "run", tmp_path / str(number)))
        inside = path.relative_to(made / "run")
        damage(run / inside, rng)
        caplog.clear()
        out = tmp_path / f"out-{number}"
        message = attempt(lambda run=run, out=out: generate(run, out, **GENERATION))
        heard = f"{message} {caplog.text}"
        if str(inside) in read or str(inside).startswith(newest):
            assert inside.name in message, f"{damage.__name__} of {inside}"
            assert not out.exists(), "nothing may be begun with a damaged run"
        else:
            assert not message and contents(out) == expected
            assert inside.parent.name != "calibration" or damage is remove or inside.name in heard


@pytest.mark.parametrize("damage", DAMAGES)
def test_generating_again_mends_a_damaged_output(made, tmp_path, damage, caplog):
    rng, expected = random.Random(3), contents(made / "out")
    for number, path in enumerate(everything(made / "out")):
        out = Path(shutil.copytree(made / "out", tmp_path / str(number)))
        damage(out / path.name, rng)
        if damage is flip and path.suffix == ".tar":  # a tar of the marker's size is trusted, until `verify` names it
            assert noticed(out / path.name, out)
            assert not attempt(lambda out=out: generate(made / "run", out, **GENERATION))
            (out / path.name).unlink()
        caplog.clear()
        message = attempt(lambda out=out: generate(made / "run", out, **GENERATION))
        shard = path.suffix == ".tar" or path.stem.startswith("synthetic-")
        if path.name == "generation.json":
            assert path.name in message or contents(out) == expected
        else:
            assert not message and contents(out) == expected
            assert not shard or damage is remove or path.stem in caplog.text


def test_a_run_without_its_hashes_is_not_cleared_away(made, tmp_path):
    run = Path(shutil.copytree(made / "begun", tmp_path / "run"))
    (run / "hashes.json").unlink()
    before = contents(run)
    assert "hashes.json" in attempt(lambda: fit(made / "data", run, RECIPE, balance=BALANCE))
    assert contents(run) == before
    fit(made / "data", run, RECIPE, balance=BALANCE, overwrite=True)
    weights = "step-00000008/*.safetensors"
    assert contents(run, weights) == contents(made / "run", weights)


@pytest.mark.parametrize("value", [{}, {"b": [1, 2.5, None], "a": {"é": "ü"}}])
def test_a_sealed_file_reads_back_and_notices_every_changed_bit(tmp_path, value):
    path = tmp_path / "sealed.json"
    storage.write_sealed_json(path, value)
    assert storage.read_sealed_json(path) == value
    whole = path.read_bytes()
    for position in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        assert "damaged" in attempt(lambda: storage.read_sealed_json(path)), position


def test_a_lost_picture_is_drawn_again_and_touches_nothing_else(made, tmp_path, monkeypatch):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    before = contents(run)
    (run / "previews" / "modalities.png").unlink()
    monkeypatch.setattr(Fitting, "_find_modalities", None)  # they are intact
    fit(made / "data", run, RECIPE, balance=BALANCE)
    assert contents(run) == before


def test_modalities_that_come_out_otherwise_are_refused(made, tmp_path, monkeypatch):
    run = Path(shutil.copytree(made / "begun", tmp_path / "run"))
    (run / "modalities.parquet").unlink()
    before, found = contents(run), Fitting._find_modalities

    def other(self: Fitting, store: object) -> Modalities:
        right = found(self, store)
        return replace(right, modality_ids=right.modality_ids[::-1].copy())

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "_find_modalities", other)
        assert "cannot be made as it was" in attempt(lambda: fit(made / "data", run, RECIPE, balance=BALANCE))
    assert contents(run) == before
    fit(made / "data", run, RECIPE, balance=BALANCE)
    weights = "step-00000008/*.safetensors"
    assert contents(run, weights) == contents(made / "run", weights)


@pytest.mark.parametrize("text", ["NaN", '{"a": 1e999}', '{"a": "\\udead"}', "[1]", "[" * 100_000])
def test_values_that_are_never_written_are_damage(tmp_path, text):
    (tmp_path / "sealed.json").write_text(text)
    assert "is damaged" in attempt(lambda: storage.read_sealed_json(tmp_path / "sealed.json"))


def test_a_manifest_cannot_name_a_command_or_leave_its_folder(made, tmp_path):
    out = Path(shutil.copytree(made / "out", tmp_path / "a{b,c}::d"))
    assert len(list(rebalance.load_shards(out))) == 12
    manifest = storage.read_sealed_json(out / "manifest.json")
    for name in ("pipe:touch pwned; cat x.tar", "../run/synthetic-000000.tar"):
        manifest["shards"][0]["shard"] = name
        storage.write_sealed_json(out / "manifest.json", manifest)
        assert "is no shard" in attempt(lambda: rebalance.load_shards(out))
