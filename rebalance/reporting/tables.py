"""Tables, bars and lists of plain text."""

from __future__ import annotations

from collections.abc import Sequence

_BAR_WIDTH = 30  # characters
_LISTED = 10  # items of a list that are shown; --json has all


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns; columns of numbers are flush right."""
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = []
    for row in texts:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def bar(value: int, largest: int) -> str:
    """Return a bar in proportion; a value above 0 shows at least a sliver."""
    eighths = round(8 * _BAR_WIDTH * value / largest) if largest else 0
    eighths = max(eighths, 1) if value else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def bulleted(title: str, items: Sequence[str]) -> list[str]:
    """Return a title with a number, and the first items, one a line; nothing without items."""
    if not items:
        return []
    more = [f"  ... and {len(items) - _LISTED} more (all with --json)"] if len(items) > _LISTED else []
    return [
        "",
        f"{title}: {len(items)}",
        *(f"  {item!r}" if "\n" in item else f"  {item}" for item in items[:_LISTED]),
        *more,
    ]


def duration(seconds: float) -> str:
    """Return seconds in words of two units at most."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
