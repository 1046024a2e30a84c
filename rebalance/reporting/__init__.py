"""Station 11, reporting: results as text for a terminal, and as pictures.

`charts` is not imported here, because it brings matplotlib along.
"""

from rebalance.reporting.evaluation import evaluation_text
from rebalance.reporting.fits import fit_text
from rebalance.reporting.inspection import inspection_text
from rebalance.reporting.outputs import filter_text, generation_text
from rebalance.reporting.plans import plan_text
from rebalance.reporting.sheets import contact_sheet
from rebalance.reporting.studies import downstream_text
from rebalance.reporting.verification import verification_text

__all__ = [
    "contact_sheet",
    "downstream_text",
    "evaluation_text",
    "filter_text",
    "fit_text",
    "generation_text",
    "inspection_text",
    "plan_text",
    "verification_text",
]
