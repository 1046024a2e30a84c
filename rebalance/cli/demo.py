"""The demonstration: the whole job on real images that come inside a package."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from rebalance import imaging, reporting, storage
from rebalance.training import RunDirectory

POOR = {"3": 20, "8": 20, "9": 20}
"""Train images that are left of the classes made rare."""

FINAL = 140
"""Images that each of them gets in the end."""

Rows = npt.NDArray[np.intp]
"""Rows of scikit-learn's digits."""

_N_TEST = 40
_SHORT = 3  # done, but images are missing: the output says which
_QUICK = ("--set", "training.steps=60", "--set", "modalities.encoder.steps=20")


def split_digits() -> tuple[dict[int, Rows], dict[int, Rows]]:
    """Return the rows of scikit-learn's digits by digit: all that are not in test, and test."""
    target = load_digits().target
    order = np.random.default_rng(0).permutation(len(target))
    rows = {digit: order[target[order] == digit] for digit in range(10)}
    return {d: r[_N_TEST:] for d, r in rows.items()}, {d: r[:_N_TEST] for d, r in rows.items()}


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as `folder/{train,test}/DIGIT/*.png` (8 x 8 px, gray), three classes made rare.

    Args:
        folder: made if it does not exist; the same files again if it does.
    """
    digits = load_digits()
    others, test = split_digits()
    train = {digit: rows[: POOR.get(str(digit))] for digit, rows in others.items()}
    for split, classes in (("test", test), ("train", train)):
        for digit, rows in classes.items():
            for row in np.sort(rows):
                pixels = (digits.images[row] * 255 / 16).round().astype(np.uint8)
                path = folder / split / str(digit) / f"{row:04d}.png"
                storage.write_bytes(path, imaging.png_bytes(Image.fromarray(pixels)))


def run_demo(out: Path, quick: bool, run_command: Callable[[list[str]], int]) -> int:
    """Write the digits, run every command on them, and leave a contact sheet; return the exit code.

    Args:
        out: folder of everything; running again resumes.
        quick: train for a few steps only.
        run_command: runs a command of the command line and returns its exit code.
    """
    start = time.monotonic()
    data, run, shards = out / "data", out / "run", out / "shards"
    balance = storage.canonical_json(dict.fromkeys(POOR, FINAL))
    request = ["--recipe", "digits-cpu", "--balance", balance, *(_QUICK if quick else ())]
    click.echo(f"Writing scikit-learn's digits to {data}", err=True)
    write_digits(data)
    commands = [
        ["inspect", str(data)],
        ["plan", str(data), *request],
        ["fit", str(data), "--run", str(run), *request],
        ["generate", str(run), "--out", str(shards), *(["--no-filter"] if quick else [])],
        ["verify", str(shards)],
        ["evaluate", str(shards), "--real", str(data)],
    ]
    for command in commands:
        click.secho(f"\n$ rebalance {shlex.join(command)}", bold=True)
        code = run_command(command)
        if code not in (0, _SHORT):
            return code
    sheet = out / "contact-sheet.png"
    storage.write_bytes(sheet, imaging.png_bytes(reporting.contact_sheet(RunDirectory(run), shards)))
    click.echo("\nThe commands were:")
    for command in commands:
        click.echo(f"  rebalance {shlex.join(command)}")
    click.echo(f"Done in {time.monotonic() - start:.0f} s. Real and synthetic images side by side: {sheet}")
    return 0
