"""Station 10, trials: what synthetic images do for a classifier that is trained with them.

`remedies` treat imbalance without synthetic images, `arms` says what can be compared, `material` loads the images,
`held_out` says which are val, `amounts` how many an arm takes, `batches` draws them, `trial` trains one classifier,
`records` keeps it, `figures` reads its confusion matrix, `summary` compares arms over seeds, `runner` runs what is
missing, `study` is the whole.
"""

from rebalance.planning.tuned import TUNED, Tuned
from rebalance.trials.arms import DEFAULT, Arm, parse_arms
from rebalance.trials.results import CHART, RESULT, ArmResult, Downstream
from rebalance.trials.study import downstream

__all__ = [
    "CHART",
    "DEFAULT",
    "RESULT",
    "TUNED",
    "Arm",
    "ArmResult",
    "Downstream",
    "Tuned",
    "downstream",
    "parse_arms",
]
