"""The balance that a downstream study chose on val, as it is kept in the run and beside the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.errors import InputError
from rebalance.measures.spreads import Spread
from rebalance.version import __version__

TUNED = "tuned.json"
SCHEMA = 1
"""One more whenever the file changes. Version 0.1 wrote none into it, and what it wrote is schema 1."""


@dataclass(frozen=True)
class Tuned:
    """The balance that val chooses.

    Attributes:
        arm: the arm.
        undecided: the arms that val cannot tell from the best on it: their difference is within its standard error.
        balance: final images of each class that gets synthetic ones; empty where none are chosen.
        synthetic: how many of them are synthetic.
        shares: the share of the class's mass that they should get.
        n_real: real train images of these classes.
        seeds: seeds that it was chosen over.
        val: its balanced accuracy on val.
        val_gain: its paired difference to the best remedy without synthetic images.
    """

    arm: str
    undecided: tuple[str, ...]
    balance: dict[str, int]
    synthetic: dict[str, int]
    shares: dict[str, float]
    n_real: dict[str, int]
    seeds: int
    val: Spread
    val_gain: Spread

    def to_json(self) -> dict[str, Any]:
        """Return the balance as plain values."""
        spreads = {"val": self.val.to_json(), "val_gain": self.val_gain.to_json()}
        return {**asdict(self), "undecided": list(self.undecided), **spreads}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tuned:
        """Read what `to_json` returns.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            arm=values["arm"],
            undecided=tuple(values["undecided"]),
            balance=dict(values["balance"]),
            synthetic=dict(values["synthetic"]),
            shares=dict(values["shares"]),
            n_real=dict(values["n_real"]),
            seeds=values["seeds"],
            val=Spread.from_json(values["val"]),
            val_gain=Spread.from_json(values["val_gain"]),
        )


def read_tuned(path: Path) -> Tuned:
    """Read a tuned balance.

    Raises:
        InputError: the file holds something else, or was written by a later version.
        DamagedError: it is missing or damaged.
    """
    values = storage.read_sealed_json(path)
    schema = values.get("schema", 1)
    if schema != SCHEMA:
        raise InputError(
            f"{path} was written by another version of rebalance: it has schema {schema}, "
            f"version {__version__} reads schema {SCHEMA}",
            remedy="Run `rebalance downstream` again with this version",
        )
    try:
        return Tuned.from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no tuned balance", allowed=f"{TUNED} of `downstream`") from error


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Write a tuned balance, which `read_tuned` reads."""
    storage.write_sealed_json(path, {"schema": SCHEMA, **tuned.to_json()})
