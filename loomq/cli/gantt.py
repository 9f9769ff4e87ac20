"""A goal's time as bars: one a stage, what it waited apart from what it worked, the critical path marked."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from loomq.cli.output import console, duration
from loomq.cli.terminal import has_color, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.text import Text

    from loomq.services.timing import GoalTiming, StageTiming

_SIGNS = {"work": "█", "retry": "▓", "lost": "▒", "queue": "░", "delay": "·"}
_PLAIN_SIGNS = {"work": "#", "retry": "r", "lost": "x", "queue": "-", "delay": "."}
_STYLES = {"work": "green", "retry": "yellow", "lost": "red", "queue": "dim", "delay": "dim"}
_TOLD = {"work": "work", "retry": "failed attempt", "lost": "lost with its process", "queue": "queue", "delay": "delay"}
_MARK = "*"
_MOST_BARS = 40
_WIDEST = 72  # cells of a bar
_NARROWEST = 10
_LONGEST_NAME = 24
_FEWEST = 2  # a goal of one stage needs no chart
_SECOND_MS = 1_000
_MINUTE_MS = 60_000
_NOTHING = {"0.00", "0 ms"}


def print_timing(timing: GoalTiming | None) -> None:
    """Print the bars of a goal of several stages, and the totals of its critical path."""
    if timing is None or not timing.path or timing.makespan_ms <= 0:
        return
    out = console()
    out.print()
    if len(timing.stages) >= _FEWEST:
        for name, drawn, length in bars(timing, out.width):
            out.print(_styled(name, drawn, length), soft_wrap=True)
        out.print(f"  {legend(timing)}", soft_wrap=True)
    out.print(summary(timing), soft_wrap=True)


def summary(timing: GoalTiming) -> str:
    """Say in one line where the time went: ``critical path 1.92 s: work 1.70, queue 0.12, delay 0.10``."""
    unit = " s" if _SECOND_MS <= timing.makespan_ms < _MINUTE_MS else ""
    return f"critical path {_length(timing.makespan_ms, timing)}{unit}: {told_totals(timing.path_ms, timing)}"


def told_totals(totals_ms: Mapping[str, float], timing: GoalTiming) -> str:
    """List totals by kind, those that matter."""
    shown = {kind: _length(ms, timing) for kind, ms in totals_ms.items()}
    return ", ".join(f"{kind} {text}" for kind, text in shown.items() if text not in _NOTHING) or "no time"


def legend(timing: GoalTiming) -> str:
    """Say what the signs mean that were drawn."""
    drawn = [f"{sign} {_TOLD[kind]}" for kind, sign in _signs().items() if timing.totals_ms.get(kind)]
    return "   ".join([*drawn, f"{_MARK} critical path"])


def bars(timing: GoalTiming, width: int) -> Iterator[tuple[str, str, str]]:
    """Draw the stages in the order in which they became ready: the critical path, and else the longest.

    Args:
        width: Columns of the terminal.

    Returns:
        Name, bar and length of each; a line that says how many were left out has no bar.
    """
    shown, signs = _chosen(timing), _signs()
    names = {name: _cut(printable(name)) for name in shown}
    widest = max(len(text) for text in names.values())
    cells = max(_NARROWEST, min(_WIDEST, width - widest - 14))
    for name in shown:
        stage = timing.stages[name]
        mark = _MARK if name in timing.path else " "
        length = duration(sum(part.ms for part in stage.parts)) or ""
        yield f"{mark} {names[name]:<{widest}}", bar(stage, timing, cells, signs), length
    left = len(timing.stages) - len(shown)
    if left:
        yield f"  … and {left:,} shorter stages", "", ""


def bar(stage: StageTiming, timing: GoalTiming, cells: int, signs: Mapping[str, str]) -> str:
    """Draw one bar: each cell shows what most of its time went into, and what went wrong has at least one."""
    per_cell = timing.makespan_ms / cells
    offsets = [(signs[part.kind], _ms(part.start - timing.start), _ms(part.end - timing.start)) for part in stage.parts]
    drawn = [_cell(offsets, at * per_cell, (at + 1) * per_cell) for at in range(cells)]
    for sign, start, end in offsets:
        place = min(cells - 1, max(0, int((start + end) / 2 / per_cell)))
        if sign in (signs["retry"], signs["lost"]) or (sign == signs["work"] and sign not in drawn):
            drawn[place] = sign
    return "".join(drawn)


def _cell(offsets: Sequence[tuple[str, float, float]], start: float, end: float) -> str:
    most, found = 0.0, " "
    for sign, begin, until in offsets:
        share = min(until, end) - max(begin, start)
        if share > most:
            most, found = share, sign
    return found


def _chosen(timing: GoalTiming) -> list[str]:
    if len(timing.stages) <= _MOST_BARS:
        return list(timing.stages)
    lengths = {name: (stage.end - stage.ready) for name, stage in timing.stages.items()}
    ranked = sorted(timing.stages, key=lambda name: (name not in timing.path, -lengths[name].total_seconds()))
    kept = set(ranked[:_MOST_BARS])
    return [name for name in timing.stages if name in kept]


def _styled(name: str, drawn: str, length: str) -> Text:
    from rich.text import Text

    found = Text(name, style="bold" if name.startswith(_MARK) else "")
    found.append("  " if drawn else "")
    kinds = {sign: kind for kind, sign in _signs().items()}
    for sign in drawn:
        found.append(sign, style=_STYLES[kinds[sign]] if sign in kinds else "")
    return found.append(f"  {length}" if length else "")


def _signs() -> dict[str, str]:
    """Give the signs that the terminal can show."""
    is_plain = os.environ.get("TERM") == "dumb" and not has_color(sys.stdout)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "".join(_SIGNS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        is_plain = True
    return _PLAIN_SIGNS if is_plain else _SIGNS


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _ms(length: timedelta) -> float:
    return length / timedelta(milliseconds=1)


def _length(ms: float, timing: GoalTiming) -> str:
    """Write a length in seconds with two digits, or with its unit where the whole is no matter of seconds."""
    is_seconds = _SECOND_MS <= timing.makespan_ms < _MINUTE_MS
    return f"{ms / 1000:.2f}" if is_seconds else duration(ms) or ""
