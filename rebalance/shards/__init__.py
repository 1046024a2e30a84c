"""Station 8, shards: drives generation and filtering, writes WebDataset shards, checks and loads them."""

from rebalance.shards.generate import GenerationResult, generate
from rebalance.shards.load import load_shards
from rebalance.shards.request import GenerationRequest
from rebalance.shards.verify import Verification, verify

__all__ = [
    "GenerationRequest",
    "GenerationResult",
    "Verification",
    "generate",
    "load_shards",
    "verify",
]
