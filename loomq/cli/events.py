"""``loomq events``: what happened to a goal, a line an event."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.completion import goal_ids
from loomq.cli.options import Invocation, pass_invocation
from loomq.cli.request import SECONDS

if TYPE_CHECKING:
    from loomq.services.events import GoalEvent


@click.command("events")
@click.argument("goal", shell_complete=goal_ids)
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only events behind the Nth.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the goal has ended.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="With --follow: give up after so long without event.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, and errors as JSON.")
@pass_invocation
def command(invocation: Invocation, goal: str, after: int, follow: bool, timeout: float | None, as_json: bool) -> None:
    """Tell what happened to a GOAL, in order; events are numbered 1, 2, 3 … and each number means the same for ever."""
    from loomq.cli.faults import Interrupted
    from loomq.cli.output import say
    from loomq.services import events, inspect

    if timeout and not follow:
        raise click.UsageError("--timeout needs --follow")
    loom = invocation.ready()
    goal_id = inspect.find(loom, goal)
    last = after
    found = events.followed(loom, goal_id, after, timeout) if follow else events.told(loom, goal_id, after)
    try:
        for event in found:
            print(json.dumps(event.to_json(), ensure_ascii=False) if as_json else _line(event), flush=True)
            last = event.seq
        if last == after and not as_json:
            say(f"no events behind {after}" if after else "no events")
    except KeyboardInterrupt:
        hint = f"go on behind the last event: loomq events {goal_id} --follow --after {last}"
        raise Interrupted(f"goal {goal_id} goes on", hint=hint) from None


def _line(event: GoalEvent) -> str:
    from loomq.cli.terminal import shortened

    shown = event.to_json()
    at = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    what = event.kind if event.stage is None else f"{event.kind:<17} {event.stage}"
    item = "" if event.item is None else f"[{event.item}]"
    return shortened(f"{event.seq:>5}  {at}  {what}{item}  {_detail(shown['detail'])}".rstrip())


def _detail(detail: dict[str, Any]) -> str:
    """Say in words what is known of most events, and quote the rest."""
    error = detail.get("error", detail if "message" in detail else None)
    if isinstance(error, dict):
        rest = {key: value for key, value in detail.items() if key != "error"} if error is not detail else {}
        return "  ".join([f"{error.get('type')}: {error.get('message')}", *_pairs(rest)])
    return "  ".join(_pairs(detail))


def _pairs(detail: dict[str, Any]) -> list[str]:
    return [
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in detail.items()
    ]
