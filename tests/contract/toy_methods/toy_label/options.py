"""Options of the translator by label and latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance.config.method import Inputs, MethodOptions
from rebalance.config.options import option
from rebalance.errors import InputError
from rebalance.methods.registry import register

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe
    from rebalance.methods.base import BuildContext
    from toy_label.method import ToyLabel


@register("toy_label")
@dataclass(frozen=True)
class ToyLabelOptions(MethodOptions):
    """Everything that is this method's own."""

    width: int = option(8, "channels", at_least=1)
    latent: int = option(4, "length of the latent", at_least=1)
    latent_weight: float = option(1.0, "weight of the latent's reconstruction", at_least=0)
    cycle_weight: float = option(1.0, "weight of the source's reconstruction", at_least=0)
    lr: float = option(1e-3, "learning rate of both networks", above=0)

    @property
    def inputs(self) -> Inputs:
        """Return a source and a latent; no reference."""
        return Inputs(references=False, latent_size=self.latent)

    def check(self, recipe: Recipe) -> None:
        """Check that the content, half as large as the image, can be doubled again."""
        if recipe.data.size_px % 2:
            raise InputError("data.size_px with toy_label", value=recipe.data.size_px, allowed="even numbers")

    def build(self, context: BuildContext) -> ToyLabel:
        """Build generator and discriminator."""
        from toy_label.method import ToyLabel

        return ToyLabel.build(self, context)
