"""Station 8, shards: drives generation and filtering, writes WebDataset shards, checks and loads them.

`generate` makes images of a run, `filter` takes given ones (`given`, `sift`); both write through `make`, `claim`,
`moments`, `manifest` and `output`.
"""

from rebalance.shards.filter import FilterResult, filter
from rebalance.shards.generate import GenerationResult, generate
from rebalance.shards.load import ShardImage, load_shards, read_synthetic
from rebalance.shards.output import OutputResult
from rebalance.shards.request import FilterRequest, GenerationRequest
from rebalance.shards.verify import Verification, verify

__all__ = [
    "FilterRequest",
    "FilterResult",
    "GenerationRequest",
    "GenerationResult",
    "OutputResult",
    "ShardImage",
    "Verification",
    "filter",
    "generate",
    "load_shards",
    "read_synthetic",
    "verify",
]
