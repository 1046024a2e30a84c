"""Remedies against imbalance that need no synthetic images, one file each. Another one is a file and a line here."""

from rebalance.trials.remedies.base import Remedy
from rebalance.trials.remedies.mixup import Mixup
from rebalance.trials.remedies.oversampling import Oversampling
from rebalance.trials.remedies.plain import Plain
from rebalance.trials.remedies.smote import Smote
from rebalance.trials.remedies.weighted import Weighted

REMEDIES: dict[str, Remedy] = {
    remedy.name: remedy
    for remedy in (
        Plain(),
        Weighted(),
        Oversampling(),
        Mixup(),
        Smote(),
    )
}
"""The remedies by name, in the order in which a study trains them."""

__all__ = ["REMEDIES", "Remedy"]
