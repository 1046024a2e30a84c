"""Station 9, evaluation: synthetic images against held-out real ones, class by class."""

from rebalance.evaluation.figures import RESULT, ClassEvaluation, Evaluation, evaluate

__all__ = ["RESULT", "ClassEvaluation", "Evaluation", "evaluate"]
