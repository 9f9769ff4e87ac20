"""``loomq submit``: hand in a goal for the worker nodes that run elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import SECONDS, Request, request_options

if TYPE_CHECKING:
    from loomq.loom import Loom
    from loomq.services.submit import GoalHandle


@click.command("submit")
@request_options
@click.option("--key", help="Idempotency key: a second goal with the same key is the first one.")
@click.option("--wait", is_flag=True, help="Wait for its end and show the result.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="With --wait: wait so long at most.")
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    request: Request,
    key: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Hand in a goal; worker nodes run it. Prints the goal's id.

    It is accepted as soon as it is written down: with the broker out of reach it is sent later.
    """
    from loomq.cli.output import notice_if_slow
    from loomq.cli.waiting import follow, print_outcome, termination_as_interrupt
    from loomq.errors import DatabaseUnavailableError, SubmitUnavailableError
    from loomq.services.setup import require_schema

    if timeout and not wait:
        raise click.UsageError("--timeout needs --wait")
    try:
        loom = invocation.loom(broker=False)
        request.check(loom)
        text = "starting the private Postgres and Redis …" if loom.is_embedded else "waiting for services …"
        with notice_if_slow(text):
            require_schema(loom)
    except DatabaseUnavailableError as error:  # as the submission itself says it
        raise SubmitUnavailableError(f"the goal was not accepted: {error.message}", hint=error.hint) from error
    handle = request.submit(loom, key=key)
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
    for remark in remarks(loom, handle):
        say(remark)
    if is_terminal(sys.stdout) and not as_json:
        say(f"follow it: loomq show {handle.goal_id}")


def remarks(loom: Loom, handle: GoalHandle) -> list[str]:
    """Say what the goal has to wait for, besides its turn."""
    from loomq.services.nodes import queues_of, unserved

    found = []
    if not loom.app.broker.is_open:
        found.append("note: the broker does not answer; the goal is kept, and sent when the broker is back")
    lonely = sorted(unserved(loom, queues_of(loom, handle.goal_id)))
    if lonely:
        found.append(f"note: no live worker node serves {', '.join(lonely)}; start one: loomq worker")
    return found
