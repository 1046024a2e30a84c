"""Station 5, training: one loop for everything that learns, and the run directory it fills."""

from rebalance.training.fit import FitResult, fit
from rebalance.training.loading import encoder_of, load_encoder, load_method, reference_labels
from rebalance.training.loop import LoopOptions, Trainer, train
from rebalance.training.run import RunDirectory, Unit, units_of
from rebalance.training.verify import RunVerification, verify_run

__all__ = [
    "FitResult",
    "LoopOptions",
    "RunDirectory",
    "RunVerification",
    "Trainer",
    "Unit",
    "encoder_of",
    "fit",
    "load_encoder",
    "load_method",
    "reference_labels",
    "train",
    "units_of",
    "verify_run",
]
