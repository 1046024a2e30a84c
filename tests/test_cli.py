"""The command line as a user meets it: exit codes, messages, JSON, and the demonstration."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

import rebalance
from rebalance.cli import main
from rebalance.config import recipe_names

ROOT = Path(__file__).parent.parent
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
    for command in ("inspect", "plan", "fit", "generate", "filter", "verify", "evaluate", "recipes", "demo"):
        assert command in listed
        assert run(command, "--help").stdout.startswith(f"Usage: rebalance {command}")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["generate", "--help"], ["recipes"]])
def test_what_computes_nothing_does_not_wait_for_torch(words):
    imported = imported_by("-m", "rebalance", *words)
    assert "click" in imported and not imported & {"torch", "numpy", "scipy", "sklearn"}


def test_what_only_applies_does_not_wait_for_what_fits_and_draws():
    imported = imported_by("-c", "import rebalance.shards.workers, rebalance.reporting, rebalance.api")
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
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(data, tmp_path, arguments, message):
    if "cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU here")
    result = run(*(data if argument == "DATA" else argument for argument in arguments), cwd=tmp_path)
    assert message in one_error(result, 2)


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
    start = time.monotonic()
    result = run_apart("-m", "rebalance", "demo", "--out", tmp_path / "demo", "--quick")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 90
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
