"""Station 7, filtering: a candidate in, a verdict out; and the gate that a whole class must pass."""

from rebalance.filtering.calibration import (
    LOW_CONFIDENCE,
    ClassCalibration,
    Gates,
    Threshold,
    Verdict,
    calibrate,
    candidate_pool,
    check_gates,
    judge,
)

__all__ = [
    "LOW_CONFIDENCE",
    "ClassCalibration",
    "Gates",
    "Threshold",
    "Verdict",
    "calibrate",
    "candidate_pool",
    "check_gates",
    "judge",
]
