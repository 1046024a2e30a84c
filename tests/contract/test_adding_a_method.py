"""The page on adding a method, followed as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from toys import write_classes

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
TOY = Path(__file__).parent / "toy_methods" / "toy_label"
_BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# Runs commands of the command line one after another, because importing torch takes longer than they do.
_RUN_COMMANDS = """
import json, sys
from rebalance.cli.commands import root
for arguments in json.load(sys.stdin):
    try:
        root.main(arguments, standalone_mode=False)
    except SystemExit as stop:
        assert not stop.code, arguments
"""


def files_of_page() -> dict[str, str]:
    """Return the files that the page's blocks make; several blocks of one file follow each other."""
    files: dict[str, list[str]] = {}
    for name, text in _BLOCK.findall(PAGE.read_text()):
        files.setdefault(name, []).append(text)
    return {name: "\n".join(parts) for name, parts in files.items()}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("path", sorted(TOY.glob("*.py")), ids=lambda path: path.name)
def test_the_page_shows_the_toy_that_the_contract_is_tested_on(path):
    assert lines(files_of_page()[f"toy_label/{path.name}"]) == lines(path.read_text())


def test_following_the_page_makes_images(tmp_path):
    for name, text in files_of_page().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_classes(tmp_path / "data", {"a": 30, "b": 24, "poor": 6})
    export, *commands = re.findall(r"^\$ (.*)$", PAGE.read_text(), re.MULTILINE)
    variables = dict(part.split("=", 1) for part in shlex.split(export)[1:])
    assert variables == {"REBALANCE_METHODS": "toy_label", "PYTHONPATH": "."}
    # The page's folder comes first, so that its own method is tried; behind it the package.
    variables["PYTHONPATH"] = os.pathsep.join([".", *filter(None, sys.path)])
    arguments = [shlex.split(command)[1:] for command in commands]
    assert {command[0] for command in arguments} == {"plan", "fit", "generate", "verify"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN_COMMANDS], input=json.dumps(arguments), cwd=tmp_path,
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "out").glob("synthetic-*.tar"))
