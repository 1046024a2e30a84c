"""Random numbers of a training step, one row an image."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rebalance.runtime.ranks import Ranks


class Draws:
    """Draws on the CPU, so that they are the same on every device, and of the whole batch, whoever shares it.

    Processes that share a batch draw the rows of all and keep their own, so that their number changes nothing. A batch
    may be drawn for several times over, as for real and synthetic images stacked in one tensor.

    Args:
        seed: 32 bits are used.
        ranks: who shares the batch.
        rows: this process's images of the batch; needed only where it is shared.
    """

    def __init__(self, seed: int, ranks: Ranks | None = None, rows: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._ranks, self._rows = ranks or Ranks(), rows

    def of_rows(self, rows: int) -> Draws:
        """Return the same stream for a part of the batch, such as a critic's repetition, of which `rows` are own."""
        part = Draws(0, self._ranks, rows)
        part._generator = self._generator
        return part

    def uniform(self, n: int, *shape: int) -> torch.Tensor:
        """Return (n, *shape) float32, uniform in [0, 1)."""
        return self._own(n, lambda rows: torch.rand(rows, *shape, generator=self._generator))

    def normal(self, n: int, *shape: int) -> torch.Tensor:
        """Return (n, *shape) float32, standard normal."""
        return self._own(n, lambda rows: torch.randn(rows, *shape, generator=self._generator))

    def integers(self, low: int, high: int, n: int, *shape: int) -> torch.Tensor:
        """Return (n, *shape) int64, uniform from `low` to `high` - 1."""
        return self._own(n, lambda rows: torch.randint(low, high, (rows, *shape), generator=self._generator))

    def _own(self, n: int, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
        ranks = self._ranks
        if ranks.count == 1:
            return draw(n)
        if self._rows < 1 or n % self._rows:
            raise ValueError(f"{n} rows are no multiple of the {self._rows} images of this process")
        every = draw(n * ranks.count).unflatten(0, (n // self._rows, ranks.count, self._rows))
        return every[:, ranks.number].flatten(0, 1)
