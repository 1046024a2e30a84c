"""BalaGAN (Patashnik et al., 2020): https://arxiv.org/abs/2010.02036."""

from rebalance.methods.balagan.options import BalaganOptions

__all__ = ["BalaganOptions"]
