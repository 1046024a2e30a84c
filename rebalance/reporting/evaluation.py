"""An evaluation as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance.reporting.tables import table

if TYPE_CHECKING:
    from rebalance.evaluation import ClassEvaluation, Evaluation


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
