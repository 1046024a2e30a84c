"""Kill `fit`, `generate` and `filter` at random moments, resume them, and compare with what nothing disturbed.

    python benchmarks/kill.py --work WORK --fit 100 --generate 100 --filter 100

Each kill is a SIGKILL to the whole process group, at a moment drawn uniformly over the time that the whole work takes.
The same command is started again until the wanted number of kills has hit a living process; every piece of work that
comes to its end is compared and begun anew. A `fit` trains a contrastive encoder and a tiny translator; a `generate`
calibrates a gate and makes shards with one or two workers; a `filter` calibrates on given images and sifts them. All is
compared byte for byte. One line of counts is appended to `results/kill.jsonl`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rebalance import cli
from rebalance.learning.logs import read_scalars

RESULTS = Path(__file__).parent / "results" / "kill.jsonl"
COUNTS = {"a": 40, "b": 30, "poor": 5, "rare": 4}
BALANCE = '{"poor": 40, "rare": 30}'
RECIPE = """
data: {size_px: 8, channels: 1, val_fraction: 0.0}
features: {input_px: 32}
modalities:
  by: contrastive
  k: 2
  encoder: {width: 4, blocks: [1, 1], stem: small, projection: 4, batch: 12, steps: 40, augmentations: [crop, flip],
            precision: fp32, memory_format: contiguous}
balagan:
  generator: {base_filters: 4, content_downs: 1, reference_downs: 2, residual_blocks: 1, style_size: 4, mlp_width: 8}
  discriminator: {base_filters: 4, blocks: 4}
training: {batch: 2, steps: 60, precision: fp32, memory_format: contiguous, threads: 1, checkpoint_every_steps: 4,
           log_every_steps: 3, preview_every_steps: 10}
generation: {batch: 8}
filtering: {checks: [], pool_images: 16, dimensions: 4, floor_draws: 3}
"""


@dataclass(frozen=True)
class Tally:
    """What a campaign came to.

    Attributes:
        kills: kills that hit a living process.
        finished: pieces of work that came to their end and equalled the undisturbed one.
    """

    kills: int
    finished: int


def write_data(folder: Path, seed: int = 0) -> Path:
    """Write gray noise images of four classes."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(60 * label + 30, 20, (9, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def start(arguments: list[str], log: Path) -> int:
    """Run a command of the command line in a forked process of a group of its own; return its number."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # it may have gone on already
            os.setpgid(child, child)
        return child
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["rebalance", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    os._exit(0)


def finish(arguments: list[str], log: Path) -> float:
    """Run a command to its end; return its seconds.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.monotonic()
    _, status = os.waitpid(start(arguments, log), 0)
    if status:
        raise RuntimeError(f"{arguments} ended with status {status}: {log.read_text()[-2000:]}")
    return time.monotonic() - begun


def killed(arguments: list[str], log: Path, seconds: float) -> bool:
    """Start a command and kill it after some seconds; return whether it was still alive.

    Raises:
        RuntimeError: it failed before.
    """
    child = start(arguments, log)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status and not os.WIFSIGNALED(status):
        raise RuntimeError(f"{arguments} ended with status {status}: {log.read_text()[-2000:]}")
    return os.WIFSIGNALED(status)


def campaign(
    wanted: int,
    seconds: Sequence[float],
    begin: Callable[[int], list[str]],
    compare: Callable[[int], None],
    rng: np.random.Generator,
    log: Path,
) -> Tally:
    """Kill and resume until there were enough kills.

    Args:
        wanted: kills.
        seconds: what each of several kinds of the work takes undisturbed; they are done by turns.
        begin: prepares piece of work number n and returns its command.
        compare: raises when that piece, finished, is not what it should be.
        rng: draws the moments.
        log: gets the commands' output.
    """
    kills, finished = 0, 0
    while kills < wanted:
        arguments = begin(finished)
        longest = seconds[finished % len(seconds)]
        while kills < wanted and killed(arguments, log, float(rng.uniform(0, longest))):
            kills += 1
        finish(arguments, log)
        compare(finished)
        finished += 1
    return Tally(kills, finished)


def trained(run: Path) -> dict[str, object]:
    """What must be equal of a finished run: last weights and optimiser, modalities, scalars, pictures."""
    found: dict[str, object] = {"scalars": read_scalars(run / "logs")}
    for model in ("encoder", "joint"):
        last = max((run / "checkpoints" / model).glob("step-*"))
        found |= {f"{model}/{path.name}": path.read_bytes() for path in last.glob("*.safetensors")}
    for path in (run / "modalities.parquet", *run.glob("previews/**/*.png")):
        found[str(path.relative_to(run))] = path.read_bytes()
    return found


def made(*folders: Path) -> dict[str, object]:
    """What must be equal of an output: every file, and the calibration in its run."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: path.read_bytes() for path in paths}


def check_equal(found: dict[str, object], expected: dict[str, object], what: str) -> None:
    """Raise when two pieces of work are not equal."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if names:
        raise RuntimeError(f"{what} differs from the undisturbed one in {', '.join(names)}")


def kill_fits(work: Path, kills: int, rng: np.random.Generator) -> Tally:
    """Kill and resume `fit`."""
    data, log, recipe = work / "data", work / "log.txt", work / "recipe.yaml"

    def command(run: Path) -> list[str]:
        return ["fit", str(data), "--run", str(run), "--recipe", str(recipe), "--balance", BALANCE, "--device", "cpu",
                "--quiet"]  # fmt: skip

    seconds = finish(command(work / "run"), log)
    expected = trained(work / "run")

    def compare(number: int) -> None:
        check_equal(trained(work / f"fit-{number}"), expected, f"fit {number}")
        shutil.rmtree(work / f"fit-{number}")

    return campaign(kills, [seconds], lambda number: command(work / f"fit-{number}"), compare, rng, log)


def kill_generates(work: Path, kills: int, rng: np.random.Generator) -> Tally:
    """Kill and restart `generate`, by turns with one and two workers."""
    log = work / "log.txt"

    def command(number: int | str, workers: int) -> list[str]:
        run, out = work / f"run-{number}", work / f"out-{number}"
        shutil.copytree(work / "run", run)
        return ["generate", str(run), "--out", str(out), "--shard-size", "4", "--max-fid", "1000x", "--include-real",
                "--min-confidence", "0", "--max-similarity", "1",
                "--workers", str(workers), "--device", "cpu", "--quiet"]  # fmt: skip

    seconds = [finish(command(f"whole-{workers}", workers), log) for workers in (1, 2)]

    def all_of(number: int | str) -> dict[str, object]:
        return made(work / f"run-{number}" / "calibration", work / f"out-{number}")

    expected = all_of("whole-1")
    check_equal(all_of("whole-2"), expected, "the output of two workers")

    def compare(number: int) -> None:
        check_equal(all_of(number), expected, f"output {number}")
        shutil.rmtree(work / f"run-{number}")
        shutil.rmtree(work / f"out-{number}")

    return campaign(kills, seconds, lambda number: command(number, 1 + number % 2), compare, rng, log)


def kill_filters(work: Path, kills: int, rng: np.random.Generator) -> Tally:
    """Kill and restart `filter`."""
    log, images = work / "log.txt", write_data(work / "images", seed=1)

    def command(out: Path) -> list[str]:
        return ["filter", str(images), "--real", str(work / "data"), "--out", str(out), "--shard-size", "4",
                "--min-confidence", "0", "--max-similarity", "1", "--input-px", "32", "--device", "cpu",
                "--quiet"]  # fmt: skip

    seconds = finish(command(work / "kept"), log)
    expected = made(work / "kept")

    def compare(number: int) -> None:
        check_equal(made(work / f"kept-{number}"), expected, f"filtered output {number}")
        shutil.rmtree(work / f"kept-{number}")

    return campaign(kills, [seconds], lambda number: command(work / f"kept-{number}"), compare, rng, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="empty folder outside the repository")
    parser.add_argument("--fit", type=int, default=100, help="kills of fit")
    parser.add_argument("--generate", type=int, default=100, help="kills of generate")
    parser.add_argument("--filter", type=int, default=100, help="kills of filter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "REBALANCE_CACHE": str(arguments.work / "cache")}
    write_data(arguments.work / "data")
    (arguments.work / "recipe.yaml").write_text(RECIPE)
    rng, begun = np.random.default_rng(arguments.seed), time.monotonic()
    fits = kill_fits(arguments.work, arguments.fit, rng)
    generates = kill_generates(arguments.work, arguments.generate, rng)
    filters = kill_filters(arguments.work, arguments.filter, rng)
    row = {
        "fit": asdict(fits), "generate": asdict(generates), "filter": asdict(filters), "seed": arguments.seed,
        "minutes": round((time.monotonic() - begun) / 60, 1), "cores": os.cpu_count(),
        "platform": platform.platform(terse=True), "torch": torch.__version__,
    }  # fmt: skip
    with arguments.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
