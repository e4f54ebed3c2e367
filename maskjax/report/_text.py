"""Text in columns."""

import io
from collections.abc import Iterable, Sequence


def whole(number: int | None) -> str:
    """A count as text."""
    return "-" if number is None else f"{number:,}"


def columns(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    shown: Sequence[bool] | None = None,
) -> str:
    """Rows under titles, the first two columns to the left and the others right."""
    from rich import console, table

    at = [i for i in range(len(titles)) if shown is None or shown[i]]
    drawn = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i in at:
        justify = "left" if i < 2 else "right"
        drawn.add_column(titles[i], justify=justify, no_wrap=True)
    for row in rows:
        drawn.add_row(*(row[i] for i in at))
    file = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    console.Console(file=file, width=10_000, markup=False, **plain).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
