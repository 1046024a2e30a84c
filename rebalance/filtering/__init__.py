"""Station 7, filtering: what an image must pass, and what a whole class must.

`checks` holds the checks of single images, one file each; `criteria` says what a user asks for, `measuring` measures
the evidence, `fitting` fits the checks of a class, `image_filter` asks them. `class_gate` compares what passes with the
real images of its class, `real_moments` what was finished, `calibration` does all of it for a run, and
`calibration_store` keeps the result.
"""

from rebalance.filtering.calibration import calibrate, evidence_of
from rebalance.filtering.calibration_store import calibration_files, read_calibrations, write_calibrations
from rebalance.filtering.checks import (
    INFLUENCE,
    LOW_CONFIDENCE,
    MEMORISED,
    OUTLIER,
    check_named,
    check_names,
)
from rebalance.filtering.class_gate import ClassCalibration, calibrate_class, filters_of, real_moments_of
from rebalance.filtering.criteria import Criteria, Threshold
from rebalance.filtering.evidence import Evidence, RealFeatures, concatenated
from rebalance.filtering.filter_options import FilterOptions
from rebalance.filtering.fitting import fit_filter
from rebalance.filtering.image_filter import ImageFilter, Scores, Verdict
from rebalance.filtering.measuring import RealView, evidence_from, real_evidence
from rebalance.filtering.real_moments import RealMoments
from rebalance.filtering.space import Space, fit_space

__all__ = [
    "INFLUENCE",
    "LOW_CONFIDENCE",
    "MEMORISED",
    "OUTLIER",
    "ClassCalibration",
    "Criteria",
    "Evidence",
    "FilterOptions",
    "ImageFilter",
    "RealFeatures",
    "RealMoments",
    "RealView",
    "Scores",
    "Space",
    "Threshold",
    "Verdict",
    "calibrate",
    "calibrate_class",
    "calibration_files",
    "check_named",
    "check_names",
    "concatenated",
    "evidence_from",
    "evidence_of",
    "filters_of",
    "fit_filter",
    "fit_space",
    "read_calibrations",
    "real_evidence",
    "real_moments_of",
    "write_calibrations",
]
