"""A translator by label and latent: one generator for all classes, diverse by noise."""

from toy_label.options import ToyLabelOptions

__all__ = ["ToyLabelOptions"]
