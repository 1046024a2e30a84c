"""Station 3, the modalities: rich classes split into latent modes that are about as large as the poor classes."""

from rebalance.modalities.assignment import Modalities, Modality, assign, modality_preview
from rebalance.modalities.encoders import ContrastiveEncoder, VariationalEncoder, embed, make_encoder

__all__ = [
    "ContrastiveEncoder",
    "Modalities",
    "Modality",
    "VariationalEncoder",
    "assign",
    "embed",
    "make_encoder",
    "modality_preview",
]
