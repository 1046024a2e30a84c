"""The check of a run or an output as text."""

from __future__ import annotations

from rebalance.shards import Verification
from rebalance.training import RunVerification


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
