"""Charts of results."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from rebalance.trials.results import Downstream

_CHARTED = {"balanced_accuracy": "balanced accuracy", "poor_recall": "mean recall of the poor classes"}
_MARGIN_POINTS = 5  # percent points beside the shortest and the longest bar


def chart_png(study: Downstream) -> bytes:
    """Draw balanced accuracy and poor-class recall of every arm as bars with 95% intervals; return a PNG."""
    arms = sorted(study.arms, key=lambda arm: arm.figures["balanced_accuracy"].mean)
    figure = Figure(figsize=(12, 1.4 + 0.32 * len(arms)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, _CHARTED.items(), strict=True):
        spreads = [arm.figures[name] for arm in arms]
        errors = [0.0 if s.low is None else 100 * (s.mean - s.low) for s in spreads]
        means = [100 * s.mean for s in spreads]
        colours = ["tab:gray" if arm.cheap else "tab:blue" for arm in arms]
        panel.barh([arm.name for arm in arms], means, color=colours, xerr=errors, capsize=2)
        panel.set_xlabel(f"{title} on test, %")
        # Not from 0: the differences are what matters, and the axis says where it begins.
        panel.set_xlim(max(0.0, min(means) - _MARGIN_POINTS), min(100.0, max(means) + _MARGIN_POINTS))
    most = max(arm.seeds for arm in arms)
    intervals = f"lines: 95% intervals over seeds, {most} at most" if most > 1 else "one seed"
    figure.suptitle(f"gray: without synthetic images; blue: with them; {intervals}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
