"""``loomq list``: goals, newest first."""

from __future__ import annotations

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

STATUSES = ("pending", "processing", "completed", "failed", "cancelled")


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--status", type=click.Choice(STATUSES), help="pending and processing both mean: has not ended.")
@click.option("--name", metavar="PIPELINE|WORKER", help="Only goals of that pipeline or worker.")
@json_option
@pass_invocation
def command(invocation: Invocation, limit: int, status: str | None, name: str | None, as_json: bool) -> None:
    """List goals, newest first."""
    from loomq.cli.output import console, duration, emit, notice_if_slow, say, since, table
    from loomq.cli.terminal import shortened
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
    headers = ("goal", "name", "status", "stages", "submitted", "took", "instruction")
    rows = [
        (
            line.goal_id,
            line.name,
            line.status,
            f"{line.stages_done}/{line.stages_total}",
            line.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            duration(since(line.created_at, line.ended_at)),
            shortened(line.instruction.replace("\n", " "), 60),
        )
        for line in lines
    ]
    console().print(table(headers, rows, right=("stages", "took")))
