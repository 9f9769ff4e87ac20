"""``loomq queues``: what waits on each queue, since when, and who serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.watching import show, watch_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from loomq.services.queues import QueueView


@click.command("queues")
@watch_option
@json_option
@pass_invocation
def command(invocation: Invocation, watch: bool, as_json: bool) -> None:
    """Show each queue: what waits and since when, what runs, who serves it, and how much it did in the last minute.

    Waiting counts tasks that are due, in the database and on the broker, which holds a part of a long backlog only.
    Later are those that are not due yet: retries, pauses, goals that wait for their turn.
    """
    from loomq.services import queues

    loom = invocation.ready(lenient=True)

    def look() -> tuple[dict[str, Any], RenderableType]:
        found = queues.queues(loom)
        return {"schema_version": 1, "queues": [queue.to_json() for queue in found]}, _seen(found)

    show(look, as_json=as_json, watch=watch)


def _seen(found: Sequence[QueueView]) -> RenderableType:
    from loomq.cli.output import duration, table

    headers = ("queue", "waiting", "oldest", "on broker", "later", "running", "done/min", "nodes", "slots")
    rows = [
        (
            queue.name,
            queue.waiting,
            None if queue.oldest_s is None else duration(queue.oldest_s * 1000),
            queue.on_broker,
            queue.later,
            queue.running,
            queue.per_minute,
            len(queue.nodes) or ("none serves it" if queue.waiting else 0),
            queue.slots,
        )
        for queue in found
    ]
    return table(headers, rows, right=headers[1:])
