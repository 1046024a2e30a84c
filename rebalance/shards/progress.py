"""A progress bar with the reasons of rejected images beside it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from rebalance.filtering import CHECKS
from rebalance.shards.make import Count


@contextlib.contextmanager
def counting(what: str, total: int, show: bool) -> Iterator[Count]:
    """Yield a function that is told of finished images, and of rejected ones by reason; show a bar on stderr."""
    rejects = Counter[str]()
    with tqdm(total=total, desc=what, unit="img", disable=not show, dynamic_ncols=True) as bar:

        def count(images: int, rejected: Mapping[str, int]) -> None:
            rejects.update(rejected)
            bar.set_postfix({reason: rejects[reason] for reason in CHECKS if rejects[reason]}, refresh=False)
            bar.update(images)

        yield count
