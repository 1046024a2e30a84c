"""Station 5, training: the stages of a fit, and the run directory that they fill."""

from rebalance.training.fitting import FitResult, fit
from rebalance.training.loading import encoder_of, load_encoder, load_method, reference_labels
from rebalance.training.run_directory import RunDirectory
from rebalance.training.stages import Stage, Unit, stages_of, units_of
from rebalance.training.verification import RunVerification, verify_run

__all__ = [
    "FitResult",
    "RunDirectory",
    "RunVerification",
    "Stage",
    "Unit",
    "encoder_of",
    "fit",
    "load_encoder",
    "load_method",
    "reference_labels",
    "stages_of",
    "units_of",
    "verify_run",
]
