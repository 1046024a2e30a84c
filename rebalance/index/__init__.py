"""Station 1, the index: what is in a data set, one row an image, bad ones with their reason."""

from rebalance.index.building import build_index
from rebalance.index.image_index import ImageIndex
from rebalance.index.inspection import Inspection, Leak, inspect_index
from rebalance.index.split import carve_validation

__all__ = ["ImageIndex", "Inspection", "Leak", "build_index", "carve_validation", "inspect_index"]
