"""What `generate` and `filter` share: how an output is finished, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance.filtering import ClassCalibration, yardsticks_of
from rebalance.frechet import FrechetResult
from rebalance.shards.claim import is_done
from rebalance.shards.make import ShardName
from rebalance.shards.manifest import About, Tally, read_marker, tally, write_manifest
from rebalance.shards.moments import finished_distances, read_moments
from rebalance.shards.request import Request


@dataclass(frozen=True)
class OutputResult:
    """What an output came to.

    Attributes:
        out: the output folder.
        fingerprint: the fingerprint of its request.
        complete: whether every shard of the output is there.
        shards: shards of the output that are there.
        made: shards made now.
        counts: synthetic images of each class in the shards that are there.
        rejects: rejected images of each class by reason.
        withheld: classes that did not pass their gate, and why.
        calibration: what was measured of each class; empty without a filter and a gate.
        finished: distance of a complete output's synthetic images to the real train images, measured as in the
            calibration, of each class that has one and two images or more.
        seconds: time taken now.
    """

    out: Path
    fingerprint: str
    complete: bool
    shards: int
    made: int
    counts: dict[str, int]
    rejects: dict[str, dict[str, int]]
    withheld: dict[str, str]
    calibration: dict[str, dict[str, Any]]
    finished: dict[str, FrechetResult]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(frozen=True)
class Finished:
    """The shards that are there, and the distances of their images where these are all shards."""

    done: tuple[ShardName, ...]
    distances: Mapping[str, FrechetResult]


def finish(
    out: Path,
    about: About,
    request: Request,
    calibrations: Mapping[str, ClassCalibration],
    names: Sequence[ShardName],
    floor_draws: int,
) -> Finished:
    """Look which shards are there, and write the manifest when these are all.

    Args:
        out: the output folder.
        about: what its manifest says.
        request: its request.
        calibrations: of its classes.
        names: all its shards.
        floor_draws: pairs of Gaussian sets behind the floor of each distance.
    """
    done = tuple(name for name in names if is_done(out, name, request))
    if len(done) < len(names):
        return Finished(done, {})
    moments = (read_moments(out / name.moments, read_marker(out, name)["moments"]) for name in done)
    yardsticks = {
        name: yardstick
        for name, yardstick in yardsticks_of(list(calibrations.values())).items()
        if name in request.counts
    }
    distances = finished_distances(moments, yardsticks, floor_draws, request.seed)
    write_manifest(out, about, request, calibrations, distances, done)
    return Finished(done, distances)


def tally_of(out: Path, done: Sequence[ShardName]) -> Tally:
    """Add up the shards that are there."""
    return tally((name, read_marker(out, name)) for name in done)


def common_results(
    out: Path,
    request: Request,
    calibrations: Mapping[str, ClassCalibration],
    finished: Finished,
    *,
    n_shards: int,
    made: int,
) -> dict[str, Any]:
    """Return the fields of an `OutputResult` but for the seconds."""
    total = tally_of(out, finished.done)
    return {
        "out": out,
        "fingerprint": request.fingerprint,
        "complete": len(finished.done) == n_shards,
        "shards": len(finished.done),
        "made": made,
        "counts": {name: total.synthetic.get(name, 0) for name in request.counts},
        "rejects": total.rejects,
        "withheld": dict(request.withheld),
        "calibration": {name: calibration.to_json() for name, calibration in calibrations.items()},
        "finished": dict(finished.distances),
    }
