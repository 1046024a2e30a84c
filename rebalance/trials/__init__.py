"""Station 10, trials: what synthetic images do for a classifier that is trained with them.

`arms` says what can be compared, `material` loads the images, `held_out` says which are val, `amounts` how many an arm
takes, `pools` draws batches of them, `classifier` trains one trial, `trial_files` keeps it, `figures` reads its
confusion matrix, `results` joins trials over seeds, `study` runs what is missing.
"""

from rebalance.trials.arms import DEFAULT, Arm, parse_arms
from rebalance.trials.results import ArmResult, Downstream, Tuned
from rebalance.trials.study import CHART, MULTIPLES, RESULT, TUNED, downstream

__all__ = [
    "CHART",
    "DEFAULT",
    "MULTIPLES",
    "RESULT",
    "TUNED",
    "Arm",
    "ArmResult",
    "Downstream",
    "Tuned",
    "downstream",
    "parse_arms",
]
