"""Outputs of `generate` and `filter` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rebalance.filtering import check_names
from rebalance.reporting.tables import table

if TYPE_CHECKING:
    from rebalance.shards import FilterResult, GenerationResult, OutputResult


def generation_text(result: GenerationResult) -> str:
    """Return the images made of each class, and what is missing."""
    reasons = _reasons(result)
    rows = [
        [name, number, *(result.rejects.get(name, {}).get(r, 0) for r in reasons), result.shortfall.get(name, 0)]
        for name, number in result.counts.items()
    ]
    return "\n".join(_output_lines(result, ["class", "images", *reasons, "short"], rows))


def filter_text(result: FilterResult) -> str:
    """Return the images kept of each class, and what became of the others."""
    reasons = _reasons(result)
    rows = [
        [name, result.given[name], number, *(result.rejects.get(name, {}).get(r, 0) for r in reasons)]
        for name, number in result.counts.items()
    ]
    kept = "their own bytes" if result.original else "encoded again, because the images have several formats or another"
    lines = _output_lines(result, ["class", "given", "kept", *reasons], rows)
    lines.append(f"images as {result.file_format}: {kept}")
    lines += [f"{n} files could not be used: {reason}" for reason, n in result.bad.items()]
    return "\n".join(lines)


def _reasons(result: OutputResult) -> list[str]:
    """Return the checks that rejected an image of any class."""
    return [check for check in check_names() if any(check in of_class for of_class in result.rejects.values())]


def _output_lines(result: OutputResult, header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of every output: a table, the calibration, withheld classes, and finished images' distances."""
    lines = [table(header, rows)] if rows else ["no class passed its gate"]
    for name, calibration in result.calibration.items():
        lines += _calibration_lines(name, calibration)
    lines += [f"WITHHELD {name!r}: {reason}" for name, reason in result.withheld.items()]
    lines += [
        f"finished {name!r}: FD to the train images {fd.distance:.4g} (floor {fd.floor:.4g}, bias {fd.bias:.4g}, "
        f"n {fd.n_real} real and {fd.n_synthetic} synthetic, d {fd.dimensions})"
        for name, fd in result.finished.items()
    ]
    if not result.complete:
        lines.append("the output is not complete: other shards are still to be made")
    return [*lines, "", f"{result.shards} shards in {result.out} ({result.made} made now)"]


def _calibration_lines(name: str, calibration: Mapping[str, Any]) -> list[str]:
    """Return what was measured on the pool of a class before the first shard."""
    fid, kid, limits = calibration["fid"], calibration["kid"], calibration["thresholds"]
    lines = []
    if fid:
        allowed = "" if calibration["fid_limit"] is None else f"limit {calibration['fid_limit']:.4g}, "
        lines.append(
            f"{name!r}: {calibration['accepted']} of {calibration['pool']} candidates accepted; FD to the train images "
            f"{calibration['fid_before']:.4g} -> {fid['distance']:.4g} ({allowed}floor {fid['floor']:.4g}, "
            f"bias {fid['bias']:.4g}, n {fid['n_real']} real and {fid['n_synthetic']} synthetic, d {fid['dimensions']})"
        )
    if kid:
        allowed = "" if calibration["kid_limit"] is None else f", limit {calibration['kid_limit']:.4g}"
        before, after = calibration["neighbourhoods_before"], calibration["neighbourhoods"]
        changes = ", ".join(f"{measure} {before[measure]:.2f} -> {value:.2f}" for measure, value in after.items())
        lines.append(
            f"  KID {kid['value']:.4g} +- {kid['error']:.2g} (floor {calibration['kid_floor']:.2g}{allowed}); {changes}"
        )
    notes = limits.get("notes", ())
    if notes and not lines:
        lines.append(f"{name!r}: {calibration['accepted']} of {calibration['pool']} candidates accepted")
    return [*lines, *(f"  {note}" for note in notes)]
