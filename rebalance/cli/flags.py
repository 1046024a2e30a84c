"""Translation of library messages: the library names parameters, the command line names flags and arguments."""

from __future__ import annotations

import logging
import re
from typing import Any

import click

from rebalance.errors import RebalanceError

_PARAMETER = re.compile(r"`([A-Za-z_]+)(?:=([^`]*))?`")


def as_flags(message: str, command: click.Command) -> str:
    """Return a library message in the words of a command.

    A parameter in backticks becomes the flag or argument of the command: `` `max_fid` `` is `--max-fid`,
    `` `overwrite=True` `` is `--overwrite`, `` `data` `` is `DATA` where that is an argument. A parameter that the
    command does not have becomes a plain word. Names of commands keep their backticks.
    """
    parameters = {parameter.name: parameter for parameter in command.params}

    def translated(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name in parameters:
            return _in_words_of(parameters[name], value)
        if value is None and name in _command_names():
            return match[0]
        return match[0].strip("`")

    return _PARAMETER.sub(translated, message)


def _in_words_of(parameter: click.Parameter, value: str | None) -> str:
    """Return a parameter, with its value if one is given, as it is typed."""
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name.upper() + ("" if value is None else f" {_typed(value)}")
    flag = max(parameter.opts, key=len)  # the long one
    if value is None or (value == "True" and _is_flag(parameter)):
        return flag
    if value == "False" and _is_flag(parameter):
        return parameter.secondary_opts[0] if parameter.secondary_opts else f"no {flag}"
    return f"{flag} {_typed(value)}"


def _is_flag(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.is_flag


def _typed(value: str) -> str:
    return value.strip("\"'")


def _command_names() -> frozenset[str]:
    """Return the names of all commands of the command line that runs."""
    context = click.get_current_context(silent=True)
    group = context.find_root().command if context else None
    return frozenset(group.commands) if isinstance(group, click.Group) else frozenset()


class TranslatingCommand(click.Command):
    """A command whose library errors name its flags."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a library error that leaves it names flags and arguments."""
        try:
            return super().invoke(ctx)
        except RebalanceError as error:
            error.args = (as_flags(str(error), self),)
            raise


class TranslatingGroup(click.Group):
    """A group of such commands."""

    command_class = TranslatingCommand


class FlagFormatter(logging.Formatter):
    """Log messages in the words of the command that runs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, translated if a command runs."""
        text, context = super().format(record), click.get_current_context(silent=True)
        return as_flags(text, context.command) if context else text
