"""The entry point: signals, logging, and errors as exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from rebalance.cli.commands import root
from rebalance.cli.flags import FlagFormatter
from rebalance.errors import RebalanceError

_INTERRUPTED = 130  # what shells give for SIGINT


def main() -> None:
    """Run the command line; map errors to exit codes and print one message without a traceback."""
    debug = "--debug" in sys.argv[1:]
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a log file needs no ten lines a second
    _log_to_stderr()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        root.main(prog_name="rebalance", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; the same command, without --overwrite, resumes.", err=True)
        sys.exit(_INTERRUPTED)
    except RebalanceError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:  # the last stop: a message for the user, the traceback with --debug
        _fail(f"unexpected {type(error).__name__}: {error} (`rebalance --debug ...` shows where)", 1, debug)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FlagFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rebalance").setLevel(logging.INFO)


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
