"""Station 7, filtering: what an image must pass, and what a whole class must.

`gates` says what a user asks for, `evidence` what is known of images, `real` looks at the real ones, `image_filter`
asks the checks of single images, `fitting` sets their limits, `class_gate` holds what passes against the real images of
its class, `yardstick` what was finished, `calibration` does all of it for a run; `store` and `archive` keep the result.
"""

from rebalance.filtering.archive import read_calibrations, write_calibrations
from rebalance.filtering.calibration import calibrate, evidence_of
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class, filters_of, yardsticks_of
from rebalance.filtering.evidence import Evidence, RealFeatures
from rebalance.filtering.fitting import fit_filter, fit_space
from rebalance.filtering.gates import Gates, Threshold
from rebalance.filtering.image_filter import (
    CHECKS,
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    OUTLIER,
    FilterOptions,
    ImageFilter,
    Scores,
    Space,
    Verdict,
)
from rebalance.filtering.real import RealView, real_evidence
from rebalance.filtering.yardstick import Yardstick

__all__ = [
    "CHECKS",
    "INFLUENCE",
    "LOW_CONFIDENCE",
    "MEMORISED",
    "OUTLIER",
    "ClassCalibration",
    "Evidence",
    "FilterOptions",
    "Gates",
    "ImageFilter",
    "RealFeatures",
    "RealView",
    "Scores",
    "Space",
    "Threshold",
    "Verdict",
    "Yardstick",
    "calibrate",
    "calibrate_class",
    "evidence_of",
    "filters_of",
    "fit_filter",
    "fit_space",
    "read_calibrations",
    "real_evidence",
    "write_calibrations",
    "yardsticks_of",
]
