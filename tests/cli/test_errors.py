"""Error messages and exit codes."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import strategies as st

import rebalance
from rebalance.cli import entry
from rebalance.errors import DamagedError, DivergedError, InputError, InterruptedRunError, RebalanceError, RefusedError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def visible(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextlib.contextmanager
def other_process(code, *arguments):
    """Run Python code in another process; yield it once it has printed a line, and kill it at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rebalance.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "--size."),
        ({"value": 3}, "--size; got 3."),
        ({"value": 0}, "--size; got 0."),
        ({"value": "x y"}, "--size; got 'x y'."),
        ({"allowed": "1 to 9"}, "--size; allowed: 1 to 9."),
        ({"remedy": "Choose another"}, "--size. Choose another."),
        ({"remedy": "Choose another."}, "--size. Choose another."),
        (
            {"value": 10, "allowed": "1 to 9", "remedy": "Choose another"},
            "--size; got 10; allowed: 1 to 9. Choose another.",
        ),
    ],
)
def test_message_names_what_value_allowed_and_remedy(arguments, message):
    assert str(RebalanceError("--size", **arguments)) == message


def test_message_has_one_full_stop_after_what():
    assert str(InputError("DATA does not exist.", value="a")) == "DATA does not exist; got 'a'."


EXIT_CODES = [
    (RebalanceError("x"), 1),
    (InputError("x"), 2),
    (RefusedError("x"), 4),
    (DivergedError("x"), 1),
    (DamagedError("x"), 1),
    (InterruptedRunError("x"), 130),
]


@pytest.mark.parametrize(("error", "code"), EXIT_CODES, ids=lambda value: type(value).__name__)
def test_exit_codes_of_errors(error, code):
    assert isinstance(error, RebalanceError)
    assert error.exit_code == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *EXIT_CODES,
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (ZeroDivisionError(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_command_line_ends_with_the_errors_code_and_one_message(monkeypatch, capsys, error, code):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(entry.root, "main", fail)
    monkeypatch.setattr(entry.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["rebalance"])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip()
    assert "Traceback" not in captured.err


def test_debug_shows_where_an_unexpected_error_came_from(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(entry.root, "main", fail)
    monkeypatch.setattr(entry.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["rebalance", "--debug"])
    with pytest.raises(SystemExit):
        entry.main()
    assert "Traceback" in capsys.readouterr().err
