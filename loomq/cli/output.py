"""What commands print: JSON for programs, tables and times for people."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Timer
from typing import TYPE_CHECKING, Any, TextIO

from loomq.cli.terminal import has_color, is_terminal, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

_PLAIN_WIDTH = 200  # where nobody looks, lines are not broken
_BREAKABLE = {
    "instruction",
    "name",
    "node",
    "queues",
    "stage",
    "tier",
    "title",
    "where",
    "worker",
}  # on a narrow terminal
_STYLES = {
    "completed": "green",
    "processing": "cyan",
    "retry": "yellow",
    "failed": "red",
    "cancelled": "yellow",
    "pending": "dim",
    "skipped": "dim",
    "answers": "green",
    "unreachable": "red",
    "stopped": "dim",
}


def emit(value: dict[str, Any]) -> None:
    """Print the one JSON object of a ``--json`` command."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def say(text: str) -> None:
    """Tell the user something that is not data: it goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def console(stream: TextIO | None = None) -> Console:
    """Make a console that takes texts literally, and writes plainly where nobody looks."""
    from rich.console import Console

    out = stream or sys.stdout
    width = None if is_terminal(out) else _PLAIN_WIDTH
    return Console(
        file=out, markup=False, emoji=False, highlight=False, width=width, no_color=not has_color(out), soft_wrap=False
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> Table:
    """Lay out a table.

    Args:
        headers: ``status`` gets its colours.
        rows: Values; ``None`` is shown as a dash.
        right: Headers of columns of numbers.
    """
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        found.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=header not in _BREAKABLE,
            overflow="fold",
        )
    for row in rows:
        cells = []
        for header, value in zip(headers, row, strict=True):
            text = "-" if value is None else printable(str(value))
            cells.append(Text(text, style=_STYLES.get(text, "") if header in {"status", "state"} else ""))
        found.add_row(*cells)
    return found


def duration(milliseconds: float | None) -> str | None:
    """Write a duration as people read it: ``7 ms``, ``1.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if milliseconds is None:
        return None
    seconds = milliseconds / 1000
    if seconds < 0.9995:  # noqa: PLR2004  (below it would be rounded to 1000 ms)
        return f"{milliseconds:.0f} ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def since(start: datetime | None, end: datetime | None = None) -> float | None:
    """Give the milliseconds from one time to another, or to now."""
    if start is None:
        return None
    return max(0.0, ((end or datetime.now(UTC)) - start).total_seconds() * 1000)


def clock(when: datetime | None) -> str:
    """Write a time of day, as this machine's clock has it."""
    return (when or datetime.now(UTC)).astimezone().strftime("%H:%M:%S")


@contextmanager
def notice_if_slow(text: str, *, after_s: float = 0.5) -> Iterator[None]:
    """Say what takes so long, if it does."""
    timer = Timer(after_s, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
