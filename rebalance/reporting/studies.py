"""A downstream study as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance.reporting.tables import table

if TYPE_CHECKING:  # they bring matplotlib and imbalanced-learn along
    from rebalance.measures.spreads import Spread
    from rebalance.trials import Downstream


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
        f"poor classes: {', '.join(study.poor)}; classifier: {study.classifier}",
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
    mean = f"{100 * spread.mean:+.1f}"
    if spread.low is None or spread.high is None:
        return mean
    return f"{mean} [{100 * spread.low:+.1f}, {100 * spread.high:+.1f}]"


def _recall_lines(study: Downstream) -> list[str]:
    """Return the recalls of the poor classes, arm by arm."""
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
