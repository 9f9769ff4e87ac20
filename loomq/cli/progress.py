"""The stages of a goal while it runs: a live table on a terminal, else a line for each change."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from loomq.cli.output import clock, console, duration, say, since, table
from loomq.cli.terminal import is_terminal, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.live import Live
    from rich.table import Table

    from loomq.services.inspect import StageView

_ROOM_AROUND = 5  # lines of the terminal that the table leaves
_QUIET = {"pending"}


def watch(*, as_json: bool) -> Watch:
    """Choose how to show progress on stderr: with ``--json`` only to somebody who looks."""
    if is_terminal(sys.stderr):
        return LiveTable()
    return Watch() if as_json else Lines()


class Watch:
    """Somebody who is told how the stages are, again and again; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, stages: Sequence[StageView]) -> None:
        """Take note of how the stages are now."""


class Lines(Watch):
    """Print a line whenever a stage has changed."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def update(self, stages: Sequence[StageView]) -> None:
        """Print what is new since the last time, oldest first."""
        new = [stage for stage in stages if self._told.get(stage.name) != (str(stage.status), stage.attempt)]
        for stage in sorted(
            new, key=lambda stage: (stage.ended_at or stage.started_at or datetime.now(UTC), stage.name)
        ):
            self._told[stage.name] = (str(stage.status), stage.attempt)
            if stage.status not in _QUIET:
                say(_line(stage))


class LiveTable(Watch):
    """Keep a table of the stages up to date on the terminal; it is gone at the end."""

    def __init__(self) -> None:
        self._console = console(sys.stderr)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        # No thread of rich's: the caller starts child processes, and updates often enough.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, stages: Sequence[StageView]) -> None:
        """Draw the table anew."""
        if self._live:
            self._live.update(picture(stages, self._console.height - _ROOM_AROUND), refresh=True)


def picture(stages: Sequence[StageView], room: int) -> Table:
    """Draw the stages, as many as there is room for: those at work first, then the latest.

    Args:
        room: Lines of the terminal.
    """
    headers = ("stage", "worker", "status", "waited", "ran")
    shown = list(stages)
    if len(stages) > max(room, 1):
        weight = {"failed": 0, "processing": 1, "retry": 1, "completed": 2}
        ranked = sorted(enumerate(stages), key=lambda pair: (weight.get(str(pair[1].status), 3), -pair[0]))
        kept = sorted(index for index, _ in ranked[: max(room - 1, 1)])
        shown = [stages[index] for index in kept]
    found = table(headers, [_row(stage) for stage in shown], right=("waited", "ran"))
    ended = sum(stage.status in {"completed", "skipped", "failed", "cancelled"} for stage in stages)
    found.caption = f"{ended} of {len(stages)} stages ended"
    found.caption_justify = "left"
    return found


def _row(stage: StageView) -> tuple[str | None, ...]:
    waited = since(stage.queued_at, stage.started_at) if stage.queued_at and stage.state != "waiting" else None
    ran = since(stage.started_at, stage.ended_at) if stage.status != "pending" else None
    return (stage.name, stage.worker, str(stage.status), duration(waited), duration(ran))


def _line(stage: StageView) -> str:
    words = [clock(stage.ended_at or stage.started_at), printable(stage.name), str(stage.status)]
    if stage.attempt > 1 or stage.status == "retry":
        words.append(f"(attempt {stage.attempt})")
    if stage.ended_at and stage.wall_time_ms is not None:
        words.append(duration(stage.wall_time_ms) or "")
    return " ".join(words)
