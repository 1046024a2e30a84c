"""Error messages and exit codes."""

import sys

import click
import pytest

from rebalance.cli import entry
from rebalance.errors import DamagedError, DivergedError, InputError, InterruptedRunError, RebalanceError, RefusedError


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
