"""Tables and sizes as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def bytes_text(count: int) -> str:
    """Return a size for a person, in decimal units as registries show it.

    >>> bytes_text(999), bytes_text(1_500), bytes_text(38_000_000)
    ('999 B', '1.5 kB', '38.0 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return rows in columns; the columns numbered in *right* are aligned to the right.

    >>> print(table(["name", "size"], [["git", "38 MB"], ["htop", "7 MB"]], right=[1]))
    name   size
    git   38 MB
    htop   7 MB
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
