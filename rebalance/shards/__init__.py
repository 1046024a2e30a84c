"""Station 8, shards: drives generation and filtering, writes WebDataset shards, checks and loads them.

`from_run` makes images of a run (`generated`, `samples`), `from_images` takes given ones (`given`, `filtered`). Both
fill shards in `filling`, write them in `contents`, and know what is done by `output`. What crosses a file boundary is
in `records` and `request`.
"""

from rebalance.shards.from_images import FilterResult, filter
from rebalance.shards.from_run import GenerationResult, generate
from rebalance.shards.loading import ShardImage, load_shards, read_synthetic
from rebalance.shards.output import OutputResult
from rebalance.shards.request import FilterRequest, GenerationRequest
from rebalance.shards.verification import Verification, verify

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
