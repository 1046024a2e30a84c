"""The package's exceptions; each knows the exit code that the command line gives it."""

from __future__ import annotations


class RebalanceError(Exception):
    """Base of every error the package raises on purpose.

    Args:
        what: what is wrong, naming the parameter in backticks, the recipe key or the file.
        value: the value received, if one was.
        allowed: what would have been accepted.
        remedy: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, allowed: str = "", remedy: str = "") -> None:
        parts = [what.rstrip(".")]
        if value is not None:
            parts.append(f"got {value!r}")
        if allowed:
            parts.append(f"allowed: {allowed}")
        message = "; ".join(parts) + "."
        if remedy:
            message += f" {remedy.rstrip('.')}."
        super().__init__(message)


class InputError(RebalanceError):
    """A wrong argument, path, recipe or data set (exit code 2)."""

    exit_code = 2


class RefusedError(RebalanceError):
    """The work would destroy or contradict something that exists (exit code 4)."""

    exit_code = 4


class DivergedError(RebalanceError):
    """Training produced a value that is not finite (exit code 1)."""


class DamagedError(RebalanceError):
    """A file that this package wrote is damaged or missing (exit code 1)."""


class PeerError(RebalanceError):
    """Another process of the same `torchrun` stopped; it has the same exit code, and said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the first process stopped; its own message says why")
        self.exit_code = exit_code


class InterruptedRunError(RebalanceError):
    """Stopped by a signal after saving; the same command resumes (exit code 130)."""

    exit_code = 130
