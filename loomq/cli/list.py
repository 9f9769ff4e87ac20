"""``loomq list``: goals, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from loomq.services.inspect import GoalLine

_WIDE = 120  # columns
_BEGINNING = 18  # the milliseconds of an id and some of its noise
STATUSES = ("pending", "processing", "completed", "failed", "cancelled")


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--status", type=click.Choice(STATUSES), help="pending and processing both mean: has not ended.")
@click.option("--name", metavar="PIPELINE|WORKER", help="Only goals of that pipeline or worker.")
@json_option
@pass_invocation
def command(invocation: Invocation, limit: int, status: str | None, name: str | None, as_json: bool) -> None:
    """List goals, newest first."""
    from loomq.cli.output import console, emit, notice_if_slow, say
    from loomq.messages import TaskStatus
    from loomq.services import inspect
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"):
        require_schema(loom)
    lines = inspect.listed(loom, limit=limit, status=TaskStatus(status) if status else None, name=name)
    if as_json:
        emit({"schema_version": 1, "goals": [line.to_json() for line in lines]})
        return
    if not lines:
        say("no goals" + (" like that" if status or name else f" yet in {loom.settings.project}"))
        return
    out = console()
    out.print(_table(lines, is_wide=out.width >= _WIDE))


def _table(lines: Sequence[GoalLine], *, is_wide: bool) -> Table:
    """Lay the goals out; a narrow terminal gets the beginning of each id, which `loomq show` takes too."""
    from loomq.cli.output import duration, since, table
    from loomq.cli.terminal import shortened
    from loomq.redaction import excerpt

    rows = [
        (
            str(line.goal_id) if is_wide else str(line.goal_id)[:_BEGINNING],
            line.name,
            line.status,
            f"{line.stages_done}/{line.stages_total}",
            line.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S" if is_wide else "%m-%d %H:%M:%S"),
            duration(since(line.created_at, line.ended_at)),
            *([shortened(excerpt(line.instruction, length=1000), 60)] if is_wide else []),
        )
        for line in lines
    ]
    headers = ("goal", "name", "status", "stages", "submitted", "took", *(["instruction"] if is_wide else []))
    return table(headers, rows, right=("stages", "took"))
