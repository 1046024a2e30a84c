"""Station 9, reporting: results as text for a terminal, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from rebalance import images
from rebalance.evaluation import ClassEvaluation, Evaluation
from rebalance.filtering import CHECKS
from rebalance.index import Inspection
from rebalance.planning import Plan
from rebalance.shards import FilterResult, GenerationResult, OutputResult, ShardImage, Verification, read_synthetic
from rebalance.training import FitResult, RunDirectory, RunVerification

if TYPE_CHECKING:  # they bring matplotlib and imbalanced-learn along
    from rebalance.trials import Downstream
    from rebalance.trials.figures import Spread

_BAR_WIDTH = 30
_LISTED = 10


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns; columns of numbers are flush right."""
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = []
    for row in texts:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def inspection_text(inspection: Inspection) -> str:
    """Return counts per class and split with bars, then sizes and faults."""
    counts = inspection.counts
    names = list(next(iter(counts.values()), {}))
    largest = max((max(of_split.values()) for of_split in counts.values()), default=0)
    shown = "train" if "train" in counts else next(iter(counts), "")
    rows = [
        [name, *(of_split[name] for of_split in counts.values()), bar(counts[shown][name], largest)] for name in names
    ]
    width, height = inspection.width_px, inspection.height_px
    ratio = "not defined (a class is empty)" if inspection.imbalance is None else f"{inspection.imbalance:.3g} : 1"
    lines = [
        table(["class", *counts, shown and f"{shown} bar"], rows) if rows else "no usable images",
        "",
        f"imbalance ratio   {ratio}",
        f"width px          {width[0]} to {width[2]}, median {width[1]}",
        f"height px         {height[0]} to {height[2]}, median {height[1]}",
        f"duplicates        {inspection.n_duplicates} within a split",
    ]
    lines += _listing("bad files", [f"{bad.path}: {bad.reason}" for bad in inspection.bad])
    leaks = [f"{' = '.join(leak.paths)} (in {', '.join(leak.splits)})" for leak in inspection.leaks]
    lines += _listing("LEAKAGE: copies across splits", leaks)
    return "\n".join(lines)


def _listing(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  ... and {len(items) - _LISTED} more (all with --json)"] if len(items) > _LISTED else []
    return [
        "",
        f"{title}: {len(items)}",
        *(f"  {item!r}" if "\n" in item else f"  {item}" for item in items[:_LISTED]),
        *more,
    ]


def bar(value: int, largest: int) -> str:
    """Return a bar in proportion; a value above 0 shows at least a sliver."""
    eighths = round(8 * _BAR_WIDTH * value / largest) if largest else 0
    eighths = max(eighths, 1) if value else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def plan_text(plan: Plan, shard_size: int) -> str:
    """Return the plan as a table of targets, modalities of their sources, and the forecast."""
    rows = [
        [
            target.name,
            target.n_real,
            target.n_synthetic,
            target.n_final,
            ", ".join(f"{s.name} ({s.distance:.2f})" for s in target.sources),
        ]
        for target in plan.targets
    ]
    splits = ", ".join(f"{name} {k}" for name, k in plan.modalities.items() if k > 1) or "none"
    lines = [
        table(["target", "real", "synthetic", "final", "sources (distance)"], rows),
        "",
        f"modalities        {splits}",
        f"synthetic images  {plan.n_synthetic} in {plan.n_shards(shard_size)} shards of at most {shard_size}",
    ]
    if plan.estimate:
        estimate = plan.estimate
        lines += [
            f"time              about {duration(estimate.fit_seconds)} to fit and "
            f"{duration(estimate.generate_seconds)} to generate, on this machine",
            f"disk              about {size(estimate.run_bytes)} for the run, {size(estimate.shards_bytes)} for shards",
        ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return seconds in words of two units at most."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


def fit_text(result: FitResult) -> str:
    """Return what was fitted, and each target's source dependence."""
    rows = []
    for unit, scalars in result.scalars.items():
        for name, value in scalars.items():
            kind, _, target = name.partition("/")
            if kind == "source_dependence":
                rows.append([unit, result.steps[unit], target, round(value, 3)])
    lines = [table(["model", "steps", "target", "source dependence"], rows), "", f"run  {result.run}"]
    return "\n".join(lines)


def generation_text(result: GenerationResult) -> str:
    """Return the images made of each class, and what is missing."""
    reasons = [r for r in CHECKS if any(r in of_class for of_class in result.rejects.values())]
    rows = [
        [name, number, *(result.rejects.get(name, {}).get(r, 0) for r in reasons), result.shortfall.get(name, 0)]
        for name, number in result.counts.items()
    ]
    return "\n".join(_output_lines(result, ["class", "images", *reasons, "short"], rows))


def filter_text(result: FilterResult) -> str:
    """Return the images kept of each class, and what became of the others."""
    reasons = [r for r in CHECKS if any(r in of_class for of_class in result.rejects.values())]
    rows = [
        [name, result.given[name], number, *(result.rejects.get(name, {}).get(r, 0) for r in reasons)]
        for name, number in result.counts.items()
    ]
    kept = "their own bytes" if result.original else "encoded again, because the images have several formats or another"
    lines = _output_lines(result, ["class", "given", "kept", *reasons], rows)
    lines.append(f"images as {result.file_format}: {kept}")
    lines += [f"{n} files could not be used: {reason}" for reason, n in result.bad.items()]
    return "\n".join(lines)


def _output_lines(result: OutputResult, header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """What is said of every output: a table, the calibration, withheld classes, and finished images' distances."""
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
    """What the pool of a class said before the first shard."""
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


def evaluation_text(evaluation: Evaluation) -> str:
    """Return a table of the figures, what they are measured with, and what could not be measured."""
    header = ["class", "synthetic", "real", "FD", "floor", "FD∞", "FID", "KID", "precision", "recall", "density",
              "coverage", "memorised", "taken for it", "real ones"]  # fmt: skip
    rows = [[_figure(value) for value in _evaluation_row(of_class)] for of_class in evaluation.classes]
    mean = evaluation.mean
    names = ("precision", "recall", "density", "coverage", "memorised", "agreement", "agreement_real")
    rows.append(
        ["mean", "", "", *(_figure(mean.get(name)) for name in ("fd", "", "fd_infinity", "fid", "kid", *names))]
    )
    bias = [
        f"  {of_class.class_name}: bias of FD {of_class.fd.bias:.3g}, in {of_class.fd.dimensions} dimensions"
        for of_class in evaluation.classes
        if of_class.fd
    ]
    notes = [f"  {of_class.class_name}: {note}" for of_class in evaluation.classes for note in of_class.notes]
    seen = ["", "The real images are those that models are trained on."] if evaluation.split == "train" else []
    return "\n".join(
        [
            table(header, rows), "",
            f"real images of split {evaluation.split}; features {evaluation.features}; seed {evaluation.seed}",
            *bias, *notes, *seen,
        ]
    )  # fmt: skip


def _evaluation_row(of_class: ClassEvaluation) -> list[object]:
    fd, far, kid, near = of_class.fd, of_class.fd_infinity, of_class.kid, of_class.neighbourhoods
    return [
        of_class.class_name, of_class.n_synthetic, of_class.n_real, fd and fd.distance, fd and fd.floor,
        far and f"{far.value:.3g} ± {far.error:.2g}", of_class.fid,
        kid and f"{kid.value:.3f} ± {kid.error:.3f}", *((near and getattr(near, name)) for name in
        ("precision", "recall", "density", "coverage")), of_class.memorised, of_class.agreement,
        of_class.agreement_real,
    ]  # fmt: skip


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def verification_text(verification: Verification | RunVerification) -> str:
    """Return what was checked, and every problem."""
    if isinstance(verification, RunVerification):
        steps = {model: ", ".join(map(str, kept)) for model, kept in verification.checkpoints.items()}
        lines = [f"{model}: checkpoints of steps {kept}" for model, kept in steps.items()]
        lines += [f"{model}: not finished; the same `rebalance fit` goes on" for model in verification.unfinished]
    else:
        lines = [f"{verification.shards} shards, {verification.images} images checked"]
    lines += [f"{problem.file}: {problem.what}" for problem in verification.problems]
    lines.append("damaged or incomplete" if verification.problems else "all is well")
    return "\n".join(lines)


def downstream_text(study: Downstream) -> str:
    """Return a table of the arms on test, the best cheap one marked, what the poor classes gain, and the choice."""
    header = ["arm", "synthetic", "seeds", "bal. accuracy", "vs best cheap", "macro F1", "G-mean", "macro G-mean",
              "poor recall", "vs best cheap", "val"]  # fmt: skip
    rows = []
    for arm in sorted(study.arms, key=lambda arm: -arm.figures["balanced_accuracy"].mean):
        own, gain = arm.figures, arm.differences
        mark = " *" if arm.name == study.baseline else ""
        rows.append(
            [
                arm.name + mark, sum(arm.synthetic.values()), arm.seeds, _plus_minus(own["balanced_accuracy"]),
                _interval(gain.get("balanced_accuracy")), _plus_minus(own["macro_f1"]),
                _plus_minus(own["geometric_mean"]), _plus_minus(own["macro_geometric_mean"]),
                _plus_minus(own["poor_recall"]), _interval(gain.get("poor_recall")), _plus_minus(arm.val),
            ]
        )  # fmt: skip
    lines = [
        table(header, rows), "",
        "in percent of the test images, mean ± standard deviation over the arm's seeds; [95% interval] of the paired",
        "difference to *, the best arm without synthetic images on test",
        f"poor classes: {', '.join(study.poor)}; classifier: {study.chosen}",
    ]  # fmt: skip
    if study.best:
        lines.append(f"best is {study.best}, by val, over {study.seeds} seeds")
    return "\n".join([*lines, "", *_recall_lines(study), "", *_tuned_lines(study), *study.notes])


def _plus_minus(spread: Spread) -> str:
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return "-" if spread.mean != spread.mean else f"{100 * spread.mean:.1f}{deviation}"


def _interval(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    interval = "" if spread.low is None else f" [{100 * spread.low:+.1f}, {100 * spread.high:+.1f}]"
    return f"{100 * spread.mean:+.1f}{interval}"


def _recall_lines(study: Downstream) -> list[str]:
    """Recalls of the poor classes, arm by arm."""
    header = ["recall on test", *study.poor]
    return [table(header, [[arm.name, *(_plus_minus(arm.recalls[name]) for name in study.poor)] for arm in study.arms])]


def _tuned_lines(study: Downstream) -> list[str]:
    if study.tuned is None:
        return [
            "no balance could be chosen: it takes the best arm without synthetic images, and that with filtered ones"
        ]
    gain = f"({_interval(study.tuned.val_gain)} on val against best, {study.tuned.seeds} seeds)"
    alike = len(study.tuned.undecided)
    among = f"; val cannot tell the best {alike} arms apart" if alike > 1 else ""
    if not study.tuned.balance:
        return [f"tuned on val: {study.tuned.arm}; no number of synthetic images was clearly better{among}"]
    amounts = ", ".join(
        f"{name!r} {n} synthetic beside {study.tuned.n_real[name]} real (share {study.tuned.shares[name]:.2f})"
        for name, n in study.tuned.synthetic.items()
    )
    return [f"tuned on val: {study.tuned.arm} {gain}: {amounts}{among}"]


_TITLES = ("real", "synthetic", "its source", "its reference")


def contact_sheet(run: RunDirectory, out: Path, columns: int = 12) -> Image.Image:
    """Draw, for every target, real images above synthetic ones, and below each its source and its reference.

    Args:
        run: the run.
        out: a complete output of it.
        columns: images a row.
    """
    recipe, index, plan = run.recipe(), run.index(), run.plan()
    ids = {index.name(row): row for row in range(index.table.num_rows)}

    def load(image_id: int) -> np.ndarray:
        return index.square(image_id, recipe.data)

    shown: dict[str, list[ShardImage]] = {target.name: [] for target in plan.targets}
    for image in read_synthetic(out):
        kept = shown[image.fields["class"]]
        if len(kept) < columns:
            kept.append(image)
    rows, titles = [], []
    for name, chosen in shown.items():
        if chosen:
            rows.append([load(int(row)) for row in index.rows("train", name)[:columns]])
            rows.append([image.pixels for image in chosen])
            rows += [[load(ids[image.made_from[part]]) for image in chosen] for part in (0, 1)]
            titles += [f"{name}: {title}" if not number else title for number, title in enumerate(_TITLES)]
    return _titled(images.grid(rows, gap_px=3, min_side_px=48), titles)


def _titled(sheet: Image.Image, titles: Sequence[str]) -> Image.Image:
    margin = 10 + 7 * max(map(len, titles))
    titled = Image.new("RGB", (sheet.width + margin, sheet.height), "white")
    titled.paste(sheet, (margin, 0))
    draw, step = ImageDraw.Draw(titled), sheet.height / len(titles)
    for number, title in enumerate(titles):
        draw.text((6, int((number + 0.5) * step) - 6), title, fill="black")
    return titled
