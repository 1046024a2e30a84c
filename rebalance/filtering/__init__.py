"""Station 7, filtering: what an image must pass, and what a whole class must.

`gates` says what a user asks for, `evidence` what is known of images, `image_filter` asks the checks of single images,
`fitting` sets their limits, `class_gate` holds what passes against the real images of its class, `calibration` does all
of it for a run, `store` keeps the result.
"""

from rebalance.filtering.calibration import calibrate, evidence_of
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class, filters_of
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
    Verdict,
)

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
    "Scores",
    "Threshold",
    "Verdict",
    "calibrate",
    "calibrate_class",
    "evidence_of",
    "filters_of",
    "fit_filter",
    "fit_space",
]
