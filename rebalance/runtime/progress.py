"""Progress bars of work that rejects some of its images."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from tqdm import tqdm


@contextlib.contextmanager
def counting(
    title: str, total: int, reasons: Sequence[str], show: bool
) -> Iterator[Callable[[int, Mapping[str, int]], None]]:
    """Yield a function that is told of finished images, and of rejected ones by reason; show a bar on stderr.

    Args:
        title: name of the bar.
        total: images in all.
        reasons: names of reasons, in the order in which the bar shows them.
        show: show the bar.
    """
    rejects = Counter[str]()
    with tqdm(total=total, desc=title, unit="img", disable=not show, dynamic_ncols=True) as bar:

        def count(images: int, rejected: Mapping[str, int]) -> None:
            rejects.update(rejected)
            bar.set_postfix({reason: rejects[reason] for reason in reasons if rejects[reason]}, refresh=False)
            bar.update(images)

        yield count
