"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance.reporting.tables import duration, size, table

if TYPE_CHECKING:
    from rebalance.planning.plans import Plan


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
