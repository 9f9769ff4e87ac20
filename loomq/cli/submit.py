"""``loomq submit``: hand in a goal for the worker nodes that run elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import Request, request_options

if TYPE_CHECKING:
    from loomq.loom import Loom
    from loomq.services.submit import GoalHandle

_SECONDS = click.FloatRange(0, min_open=True)


@click.command("submit")
@request_options
@click.option("--key", help="Idempotency key: a second goal with the same key is the first one.")
@click.option("--deadline", type=_SECONDS, metavar="SECONDS", help="The goal fails if it has not ended by then.")
@click.option("--wait", is_flag=True, help="Wait for its end and show the result.")
@click.option("--timeout", type=_SECONDS, metavar="SECONDS", help="With --wait: wait so long at most.")
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    request: Request,
    key: str | None,
    deadline: float | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Hand in a goal; worker nodes run it. Prints the goal's id.

    It is accepted as soon as it is written down: with the broker out of reach it is sent later.
    """
    from loomq.cli.output import notice_if_slow
    from loomq.cli.waiting import follow, print_outcome, termination_as_interrupt
    from loomq.services.setup import require_schema

    if timeout and not wait:
        raise click.UsageError("--timeout needs --wait")
    loom = invocation.loom(broker=False)
    request.check(loom)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for services …"):
        require_schema(loom)
    handle = request.submit(loom, key=key, deadline_s=deadline)
    if not (wait and as_json):
        _tell(loom, handle, request, as_json=as_json)
    if wait:
        with termination_as_interrupt():
            view = follow(loom, handle, timeout_s=timeout, as_json=as_json, afterwards="it goes on")
        print_outcome(view, as_json=as_json)


def _tell(loom: Loom, handle: GoalHandle, request: Request, *, as_json: bool) -> None:
    from loomq.cli.output import emit, say
    from loomq.cli.terminal import is_terminal

    if as_json:
        emit({"schema_version": 1, "goal_id": str(handle.goal_id), "name": request.name, "created": handle.created})
    else:
        print(handle.goal_id, flush=True)
        if not handle.created:
            say("that key belongs to this older goal; nothing new was handed in")
    for remark in _remarks(loom, handle):
        say(remark)
    if is_terminal(sys.stdout) and not as_json:
        say(f"follow it: loomq show {handle.goal_id}")


def _remarks(loom: Loom, handle: GoalHandle) -> list[str]:
    """Say what the goal has to wait for, besides its turn."""
    from loomq.services.nodes import queues_of, unserved

    found = []
    if not loom.app.broker.is_open:
        found.append("note: the broker does not answer; the goal is kept, and sent when the broker is back")
    lonely = sorted(unserved(loom, queues_of(loom, handle.goal_id)))
    if lonely:
        found.append(f"note: no live worker node serves {', '.join(lonely)}; start one: loomq worker")
    return found
