"""An inspection as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance.reporting.tables import bar, bulleted, table

if TYPE_CHECKING:
    from rebalance.index import Inspection


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
    lines += bulleted("bad files", [f"{bad.path}: {bad.reason}" for bad in inspection.bad])
    leaks = [f"{' = '.join(leak.paths)} (in {', '.join(leak.splits)})" for leak in inspection.leaks]
    lines += bulleted("LEAKAGE: copies across splits", leaks)
    return "\n".join(lines)
