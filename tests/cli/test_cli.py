"""The command line as a user meets it: exit codes, messages, JSON, and the demonstration."""

import ast
import contextlib
import inspect
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
import webdataset
from PIL import Image

import rebalance
from rebalance import FeatureChoice, FilterChoice, OutputOptions, StudyOptions, api
from rebalance.cli import main
from rebalance.cli.commands import root
from rebalance.cli.flags import FlagFormatter, as_flags
from rebalance.config import recipe_names
from rebalance.errors import InputError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command line in this process, as its entry point would."""
    out, err, handler, before = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM), Path.cwd()
    words = ["rebalance", *map(str, arguments)]
    code = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        os.chdir(cwd or before)
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os.chdir(before)
            signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run_apart(*arguments: object) -> subprocess.CompletedProcess:
    """Run a command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


def imported_by(*arguments: object) -> set[str]:
    """Names of the modules that a command line of Python imports."""
    done = run_apart("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(50 * label + 40, 25, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("cli") / "data", {"rich": 30, "poor": 5})


def one_error(result: subprocess.CompletedProcess, code: int) -> str:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0]


def test_version_and_launchers():
    for launcher in (["-m", "rebalance"], [ROOT / "cli.py"]):
        result = run_apart(*launcher, "--version")
        assert result.returncode == 0 and rebalance.__version__ in result.stdout


def test_every_command_has_help():
    listed = run("--help").stdout
    for command in {*api.__all__, "recipes", "demo"} - {"load_shards"}:
        assert command in listed
        assert run(command, "--help").stdout.startswith(f"Usage: rebalance {command}")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["generate", "--help"], ["recipes"]])
def test_what_computes_nothing_does_not_wait_for_torch(words):
    imported = imported_by("-m", "rebalance", *words)
    assert "click" in imported and not imported & {"torch", "numpy", "scipy", "sklearn"}


def test_what_only_applies_does_not_wait_for_what_fits_and_draws():
    imported = imported_by("-c", "import rebalance.shards.making, rebalance.reporting, rebalance.api")
    assert "torch" in imported and not imported & {"sklearn", "scipy.stats", "imblearn", "matplotlib"}


def test_recipes_are_listed_and_printed():
    listed = run("recipes").stdout
    assert all(name in listed for name in recipe_names())
    assert run("recipes", "digits-cpu").stdout == (ROOT / "recipes" / "digits-cpu.yaml").read_text()


def test_inspect_shows_counts_bars_and_faults(tmp_path):
    folder = write_folder(tmp_path / "data", {"cat": 20, "dog": 5})
    (folder / "dog" / "note.jpg").write_text("not a picture")
    (folder / "empty").mkdir()
    shown = run("inspect", folder, "--quiet").stdout
    assert "not an image" in shown and "note.jpg" in shown and "█" in shown
    values = json.loads(run("inspect", folder, "--json", "--quiet").stdout)
    assert values["counts"]["train"] == {"cat": 20, "dog": 5, "empty": 0}
    assert values["bad"] == [{"path": "dog/note.jpg", "reason": "not an image"}]


def test_the_whole_job_from_the_command_line(data, tmp_path):
    request = ["--recipe", TINY, "--balance", '{"poor": 15}', "--quiet", "--device", "cpu"]
    planned = json.loads(run("plan", data, *request, "--json").stdout)
    assert planned["targets"][0]["n_synthetic"] == 10 and planned["estimate"]["fit_seconds"] > 0
    fitted = run("fit", data, "--run", tmp_path / "run", *request, "--json")
    assert fitted.returncode == 0, fitted.stderr
    summary = json.loads(fitted.stdout)
    assert summary["steps"] == {"joint": 2} and summary["resumed"] is False
    generated = run("generate", tmp_path / "run", "--out", tmp_path / "out", "--quiet", "--json", "--workers", 1)
    assert generated.returncode == 0, generated.stderr
    assert json.loads(generated.stdout)["counts"] == {"poor": 10}
    assert json.loads(run("verify", tmp_path / "out", "--json", "--quiet").stdout)["problems"] == []
    tar = str(tmp_path / "out" / "synthetic-000000.tar")
    assert len(list(webdataset.WebDataset(tar, shardshuffle=False))) == 10

    again = run("fit", data, "--run", tmp_path / "run", *request, "--json")
    assert json.loads(again.stdout)["resumed"] is True
    other = write_folder(tmp_path / "other", {"rich": 31, "poor": 5})
    assert "rich/030.png is new" in one_error(run("fit", other, "--run", tmp_path / "run", *request), 4)
    assert "training.steps" in one_error(
        run("fit", data, "--run", tmp_path / "run", *request, "--set", "training.steps=3"), 4
    )
    assert "quality" in one_error(run("generate", tmp_path / "run", "--out", tmp_path / "out", "--quality", 80), 4)
    short = run("generate", tmp_path / "run", "--out", tmp_path / "short", "--min-confidence", 1, "-q", "--workers", 1)
    assert short.returncode == 3
    (tmp_path / "out" / "synthetic-000000.tar").write_bytes(b"damaged")
    assert run("verify", tmp_path / "out", "--quiet").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "DATA does not exist"),
        (["plan", "DATA", "--recipe", "digits-gpu"], "Did you mean 'digits-cpu'"),
        (["plan", "DATA", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "DATA", "--recipe", TINY, "--set", "training.step=3"], "Did you mean 'steps'"),
        (["plan", "DATA", "--recipe", TINY, "--set", "training.steps=0"], "1 or more"),
        (["plan", "DATA", "--recipe", TINY, "--set", "training.steps"], "key=value"),
        (["plan", "DATA", "--recipe", TINY, "--balance", "some"], "not majority"),
        (["plan", "DATA", "--recipe", TINY, "--balance", '{"poor": 3}'], "below its 5 real images"),
        (["plan", "DATA", "--recipe", TINY, "--balance", '{"pooor": 30}'], "unknown class 'pooor'"),
        (["plan", "DATA", "--recipe", TINY, "--balance", "0.1"], "already met"),
        (["plan", "DATA", "--recipe", TINY, "--balance", '{"rich": 90}'], "has no source"),
        (["plan", "DATA", "--recipe", TINY, "--max-multiple", "0"], "--max-multiple"),
        (["fit", "DATA", "--run", "run", "--recipe", TINY, "--device", "cuda"], "no usable GPU"),
        (["generate", "nowhere", "--out", "out"], "not a run directory"),
        (["verify", "nowhere"], "does not exist"),
        (["filter", "DATA", "--real", "nowhere", "--out", "out"], "--real does not exist"),
        (["evaluate", "DATA", "--real", "nowhere"], "--real does not exist"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(data, tmp_path, arguments, message):
    if "cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU here")
    result = run(*(data if argument == "DATA" else argument for argument in arguments), cwd=tmp_path)
    assert message in one_error(result, 2)


# Flags and parameters


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("generate", "`max_fid`; got 'x'.", "--max-fid; got 'x'."),
        ("generate", "`run` is not a run directory", "RUN is not a run directory"),
        ("fit", "`run` lies inside `data`", "--run lies inside DATA"),
        ("generate", "name where it is with `data`", "name where it is with --data"),
        ("evaluate", "`data` has no test image", "data has no test image"),
        ("evaluate", "`features` needs `run`; see `real`", "--features needs --run; see --real"),
        ("filter", "`images` lies inside `out`", "IMAGES lies inside --out"),
        ("fit", "start again with `overwrite=True`.", "start again with --overwrite."),
        ("generate", "`file_format` or `include_real=True`", "--format or --include-real"),
        ("generate", "`filter_images=False`", "--no-filter"),
        ("generate", '`balance="tuned"`', "--balance tuned"),
        ("generate", "`pool` and `workers=1`", "pool and --workers 1"),
        ("plan", "`overrides` need key=value", "--set need key=value"),
        ("downstream", "`study` `arms` `synthetic` `results`", "study --arms SYNTHETIC --results"),
        ("verify", "`path` holds neither", "PATH holds neither"),
        ("inspect", "`progress`", "progress"),
        ("generate", "first `rebalance fit`; see `filtering.checks`", "first `rebalance fit`; see `filtering.checks`"),
        ("generate", "training.batch and 'x`y'", "training.batch and 'x`y'"),
        ("fit", "a `broken", "a `broken"),
    ],
)  # fmt: skip
def test_parameters_become_what_is_typed_for_the_command(command, message, shown):
    assert as_flags(message, root.commands[command]) == shown


def test_names_of_commands_keep_their_backticks_when_a_command_runs():
    message = "an output of `generate` or `filter`, by `run`"
    with click.Context(root), click.Context(root.commands["verify"], parent=click.Context(root)) as context:
        assert as_flags(message, context.command) == "an output of `generate` or `filter`, by run"


def test_every_parameter_of_every_public_function_is_typed_somehow():
    """A parameter that the library may name is a flag or an argument of its command, or part of an option object."""
    own = {"progress", "transform", "output", "filtering", "features", "study"}
    for name in set(api.__all__) - {"load_shards"}:
        typed = {parameter.name for parameter in root.commands[name].params}
        assert set(inspect.signature(getattr(api, name)).parameters) - own <= typed
    typed = {parameter.name for parameter in root.commands["generate"].params + root.commands["filter"].params}
    for kind in (OutputOptions, FilterChoice):
        assert {field.name for field in fields(kind)} <= typed
    typed = {parameter.name for parameter in root.commands["evaluate"].params}
    assert {field.name for field in fields(FeatureChoice)} - {"name"} <= typed
    typed = {parameter.name for parameter in root.commands["downstream"].params}
    assert {field.name for field in fields(StudyOptions)} <= typed


def test_library_error_names_the_flags_of_the_command_that_ran(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise InputError("`run` and `features`", value=3, remedy="Change `overwrite=True`")

    monkeypatch.setattr(api, "evaluate", refuse)
    monkeypatch.setattr(api, "generate", refuse)
    shown = one_error(run("evaluate", tmp_path, "--real", tmp_path), 2)
    assert shown == "Error: --run and --features; got 3. Change overwrite=True."
    shown = one_error(run("generate", tmp_path, "--out", tmp_path), 2)
    assert shown == "Error: RUN and --features; got 3. Change --overwrite."


def test_ranges_of_option_objects_name_their_flags(tmp_path):
    assert "--quality" in one_error(run("generate", tmp_path, "--out", tmp_path, "--quality", 0), 2)
    assert "--shard-size" in one_error(run("filter", "x", "--real", "y", "--out", "z", "--shard-size", 0), 2)
    assert "--seeds" in one_error(run("downstream", "x", "y", "--seeds", 0), 2)


def test_log_messages_name_the_flags_of_the_command_that_runs():
    record = logging.LogRecord("rebalance", logging.WARNING, "", 0, "see `%s`", ("max_fid",), None)
    assert FlagFormatter("%(message)s").format(record) == "see `max_fid`"
    with click.Context(root.commands["generate"]):
        assert FlagFormatter("%(message)s").format(record) == "see --max-fid"


SIGNATURES = {name: inspect.signature(getattr(api, name)) for name in api.__all__}
PARAMETERS = {
    *(parameter for signature in SIGNATURES.values() for parameter in signature.parameters),
    *(field.name for kind in (OutputOptions, FilterChoice, FeatureChoice, StudyOptions) for field in fields(kind)),
}
SAYS_FLAGS = re.compile(r"(?<![\w-])--(?!nproc-per-node)[a-z]|\b(DATA|OUT|IMAGES|RUN|REAL|SYNTHETIC)\b")


def messages(path: Path) -> list[str]:
    """Texts of all errors that a module raises."""
    raised = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)]
    inside = [part for node in raised for part in ast.walk(node)]
    return [part.value for part in inside if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "rebalance").rglob("*.py")) if path.parent.name != "cli"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_errors_of_the_library_name_parameters_and_no_flags(path):
    assert [text for text in messages(path) if SAYS_FLAGS.search(text)] == []
    names = {name for text in messages(path) for name in re.findall(r"`([A-Za-z_]+)(?:=[^`]*)?`", text)}
    assert names <= PARAMETERS | set(api.__all__)


class Asked:
    """Stands for a public function: keeps what it was called with, and stops the command."""

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        raise InputError("enough")


def asked(monkeypatch, function, *words):
    recorder = Asked()
    monkeypatch.setattr(api, function, recorder)
    assert "enough" in one_error(run(*words), 2)
    return recorder


def test_generate_passes_every_flag_on(monkeypatch):
    call = asked(
        monkeypatch, "generate", "generate", "r", "--out", "o", "--balance", "0.5", "--max-multiple", 3,
        "--shard-size", 7, "--format", "png", "--quality", 80, "--seed", 4, "--workers", 2, "--shards", "1:3",
        "--include-real", "--no-filter", "--keep", 0.5, "--min-confidence", 0.6, "--max-similarity", 0.7,
        "--max-fid", "3x", "--max-kid", "0.5", "--features", "inception", "--weights", "w", "--data", "d",
        "--overwrite", "--device", "cpu", "-q",
    )  # fmt: skip
    assert call.arguments == (Path("r"), Path("o"))
    features = FeatureChoice(name="inception", weights=Path("w"))
    assert call.options == {
        "balance": "0.5", "max_multiple": 3.0, "data": Path("d"), "workers": 2, "device": "cpu", "overwrite": True,
        "progress": False,
        "output": OutputOptions(7, "png", 80, 4, True, (1, 3)),
        "filtering": FilterChoice(False, 0.5, 0.6, 0.7, "3x", "0.5", None, features),
    }  # fmt: skip


def test_filter_passes_every_flag_on(monkeypatch):
    call = asked(
        monkeypatch, "filter", "filter", "i", "--real", "d", "--out", "o", "--keep", 0.5, "--pool", 99,
        "--shard-size", 7, "--features", "encoder", "--run", "r", "--input-px", 64, "--weights", "w",
        "--square", "pad", "--seed", 4, "--workers", 3, "--device", "cpu",
    )  # fmt: skip
    assert call.arguments == (Path("i"), Path("d"), Path("o"))
    features = FeatureChoice("encoder", Path("r"), Path("w"), 64)
    assert call.options == {
        "workers": 3, "device": "cpu", "overwrite": False, "progress": True,
        "output": OutputOptions(shard_size=7, seed=4, square="pad"),
        "filtering": FilterChoice(keep=0.5, pool=99, features=features),
    }  # fmt: skip


def test_evaluate_and_downstream_pass_every_flag_on(monkeypatch):
    call = asked(
        monkeypatch, "evaluate", "evaluate", "s", "--real", "d", "--split", "val", "--features", "inception",
        "--input-px", 64, "--square", "pad", "--dimensions", 8, "--max-images", 9, "--seed", 4, "--device", "cpu",
    )  # fmt: skip
    assert call.arguments == (Path("s"), Path("d"))
    assert call.options == {
        "split": "val", "features": FeatureChoice("inception", input_px=64), "square": "pad", "dimensions": 8,
        "max_images": 9, "seed": 4, "device": "cpu", "progress": True,
    }  # fmt: skip
    call = asked(
        monkeypatch, "downstream", "downstream", "d", "s", "--run", "r", "--results", "f", "--seeds", 2,
        "--arms", "plain, best", "--multiples", "1,full", "--recipe", "digits-cpu", "--set", "downstream.steps=3",
        "--square", "pad", "--overwrite", "--device", "cpu", "-q",
    )  # fmt: skip
    assert call.arguments == (Path("d"), Path("s"))
    assert call.options == {
        "run": Path("r"), "results": Path("f"), "recipe": "digits-cpu", "overrides": ("downstream.steps=3",),
        "study": StudyOptions(("plain", "best"), ("1", "full"), 2, "pad"), "device": "cpu", "overwrite": True,
        "progress": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("plan", ["plan", "d"]),
        ("fit", ["fit", "d", "--run", "r"]),
        ("generate", ["generate", "r", "--out", "o"]),
        ("filter", ["filter", "i", "--real", "d", "--out", "o"]),
        ("evaluate", ["evaluate", "s", "--real", "d"]),
        ("downstream", ["downstream", "d", "s"]),
    ],
)
def test_defaults_of_flags_are_those_of_the_functions(monkeypatch, function, words):
    call = asked(monkeypatch, function, *words)
    parameters = SIGNATURES[function].parameters
    differing = {name for name, value in call.options.items() if value != parameters[name].default}
    assert differing <= {"progress", "workers"}  # a script may not be importable; a person wants to see progress


def test_one_class_only_is_an_error_with_the_rule(tmp_path):
    folder = write_folder(tmp_path / "data", {"only": 9})
    assert "at least two classes" in one_error(run("plan", folder, "--recipe", TINY), 2)


def test_usage_errors_exit_2(data):
    for arguments in (["fit", data], ["plan", data, "--bogus"], ["generate", "r", "--out", "o", "--shards", "x"]):
        result = run(*arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr


def test_debug_shows_the_traceback():
    result = run("--debug", "inspect", "nowhere")
    assert result.returncode == 2 and "Traceback" in result.stderr


def test_a_run_that_is_not_finished_does_not_generate(data, tmp_path):
    command = [
        sys.executable, "-m", "rebalance", "fit", str(data), "--run", str(tmp_path / "run"), "--recipe", str(TINY),
        "--set", "training.steps=100000", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    while process.poll() is None and not list((tmp_path / "run").glob("logs/joint/events*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "of 100000" in one_error(run("generate", tmp_path / "run", "--out", tmp_path / "out"), 2)


def test_the_demonstration_leaves_a_contact_sheet(tmp_path):
    result = run_apart("-m", "rebalance", "demo", "--out", tmp_path / "demo", "--quick")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "demo" / "contact-sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert str(tmp_path / "demo" / "contact-sheet.png") in result.stdout
    for command in ("inspect", "plan", "fit", "generate", "verify", "evaluate"):
        assert f"$ rebalance {command} " in result.stdout

    classifier = ROOT / "examples" / "train_classifier.py"
    trained = run_apart(classifier, tmp_path / "demo" / "data", tmp_path / "demo" / "shards", "--steps", 60)
    assert trained.returncode == 0, trained.stderr
    means = [float(line.split()[-1]) for line in trained.stdout.splitlines()[1:]]
    assert len(means) == 2 and min(means) > 0.5


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_fashion_mnist_example_writes_the_counts_asked_for(tmp_path):
    counts = "12,9,8,7,6,5,4,3,2,1"
    command = [
        sys.executable,
        ROOT / "examples" / "fashion_mnist.py",
        tmp_path / "out",
        "--counts",
        counts,
        "--val",
        "2",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for label, count in enumerate(map(int, counts.split(","))):
        assert len(list((tmp_path / "out" / "train" / str(label)).iterdir())) == count
        assert len(list((tmp_path / "out" / "val" / str(label)).iterdir())) == 2
        assert len(list((tmp_path / "out" / "test" / str(label)).iterdir())) == 1000
