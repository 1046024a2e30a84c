"""Station 8, shards: drives generation and filtering, writes WebDataset shards, checks and loads them."""

from rebalance.shards.generate import GenerationResult, generate
from rebalance.shards.load import ShardImage, load_shards, read_synthetic
from rebalance.shards.request import GenerationRequest
from rebalance.shards.verify import Verification, verify

__all__ = [
    "GenerationRequest",
    "GenerationResult",
    "ShardImage",
    "Verification",
    "generate",
    "load_shards",
    "read_synthetic",
    "verify",
]
