"""The state of an output during one call: which shards are done, and what their markers say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.errors import DamagedError
from rebalance.filtering import ClassCalibration, real_moments_of
from rebalance.measures.frechet import FrechetResult
from rebalance.shards.manifest import About, write_manifest
from rebalance.shards.names import ShardName
from rebalance.shards.records import Marker, read_marker
from rebalance.shards.request import Request
from rebalance.shards.shard_moments import finished_distances, read_moments
from rebalance.shards.totals import Totals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputResult:
    """What an output came to.

    Attributes:
        out: the output folder.
        fingerprint: the fingerprint of its request.
        complete: whether every shard of the output is there.
        shards: shards of the output that are there.
        made: shards made now.
        counts: synthetic images of each class in a complete output, else in the shards that this call was asked for.
        rejects: rejected images of each class by reason, of the same shards.
        withheld: classes that did not pass a limit on the whole class, and why.
        calibration: what was measured of each class; empty where nothing must be passed.
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
    """What a call left.

    Attributes:
        complete: whether every shard of the output is there.
        n_shards: shards that are there.
        markers: of all shards where the output is complete, else of those that the call was asked for and are there.
        distances: of a complete output's images to the real ones, by class.
    """

    complete: bool
    n_shards: int
    markers: Mapping[ShardName, Marker]
    distances: Mapping[str, FrechetResult]


class OutputState:
    """One call's view of an output; a marker that it has read, it does not read again.

    A tar is hashed once, by the call that writes it. A later call trusts a shard whose marker and moments are intact
    and whose tar has the marker's size; `verify` is the one that reads every tar again.

    Args:
        out: the output folder.
        request: its request.
        names: all its shards.
        wanted: those that this call is to make.
    """

    def __init__(self, out: Path, request: Request, names: Sequence[ShardName], wanted: Sequence[ShardName]) -> None:
        self.out, self.request, self.names, self.wanted = out, request, tuple(names), tuple(wanted)
        self._markers: dict[ShardName, Marker] = {}

    def missing(self, names: Iterable[ShardName]) -> list[ShardName]:
        """Return those shards that are not done."""
        return [name for name in names if self.marker(name) is None]

    def marker(self, name: ShardName) -> Marker | None:
        """Return the marker of a shard that is done, else None; a warning says what of a finished one is damaged."""
        if name not in self._markers and storage.is_file(self.out / name.marker):
            try:
                marker = self._checked(name)
            except DamagedError as error:
                logger.warning("%s It is made again.", error)
                return None
            if marker.fingerprint != self.request.fingerprint:
                return None
            self._markers[name] = marker
        return self._markers.get(name)

    def _checked(self, name: ShardName) -> Marker:
        """Read a shard's marker and hold its files against it, as far as no tar must be read.

        Raises:
            DamagedError: naming the file.
        """
        marker, tar = read_marker(self.out, name), self.out / name.tar
        if not storage.is_file(tar) or storage.size(tar) != marker.bytes:
            raise DamagedError(f"{tar} is missing or has another size than its marker says")
        read_moments(self.out / name.moments, marker.moments)
        return marker

    def markers(self, names: Iterable[ShardName]) -> dict[ShardName, Marker]:
        """Return the markers of those shards that are done."""
        found = ((name, self.marker(name)) for name in names)
        return {name: marker for name, marker in found if marker is not None}

    def finish(self, about: About, calibrations: Mapping[str, ClassCalibration], floor_draws: int) -> Finished:
        """Write the manifest where all shards are there; a call for some of them reads no others until then.

        Args:
            about: what the manifest says of the output.
            calibrations: of its classes.
            floor_draws: pairs of Gaussian sets behind the floor of each distance.
        """
        left = self.left()
        if not left.complete:
            return left
        moments = (read_moments(self.out / name.moments, marker.moments) for name, marker in left.markers.items())
        real = {n: m for n, m in real_moments_of(list(calibrations.values())).items() if n in self.request.counts}
        distances = finished_distances(moments, real, floor_draws, self.request.settings.seed)
        write_manifest(self.out, about, self.request, calibrations, distances, left.markers)
        return Finished(True, left.n_shards, left.markers, distances)

    def left(self) -> Finished:
        """Return what is there, without distances."""
        present = set(storage.list_names(self.out))
        marked = [name for name in self.names if name.marker in present]
        if len(marked) == len(self.names):
            markers = self.markers(self.names)
            if len(markers) == len(self.names):
                return Finished(True, len(markers), markers, {})
            marked = list(markers)
        return Finished(False, len(marked), self.markers(self.wanted), {})

    def result(
        self, finished: Finished, calibrations: Mapping[str, ClassCalibration], made: int, seconds: float
    ) -> OutputResult:
        """Return what the output came to."""
        total = Totals.of(finished.markers)
        return OutputResult(
            out=self.out,
            fingerprint=self.request.fingerprint,
            complete=finished.complete,
            shards=finished.n_shards,
            made=made,
            counts={name: total.synthetic.get(name, 0) for name in self.request.counts},
            rejects=total.rejects,
            withheld=dict(self.request.selection.withheld),
            calibration={name: calibration.to_json() for name, calibration in calibrations.items()},
            finished=dict(finished.distances),
            seconds=round(seconds, 1),
        )
