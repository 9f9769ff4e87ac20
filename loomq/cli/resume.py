"""``loomq resume``: let a paused goal go on."""

from __future__ import annotations

import click

from loomq.cli.completion import goal_ids
from loomq.cli.options import Invocation, json_option, pass_invocation


@click.command("resume")
@click.argument("goal", shell_complete=goal_ids)
@json_option
@pass_invocation
def command(invocation: Invocation, goal: str, as_json: bool) -> None:
    """Let a paused GOAL go on; one that is not paused goes on as it did."""
    from loomq.cli.output import emit
    from loomq.errors import GoalStateError
    from loomq.services import control, inspect

    loom = invocation.ready()
    goal_id = inspect.find(loom, goal)
    is_resumed = control.resume(loom, goal_id)
    if not is_resumed and inspect.has_ended(loom, goal_id):
        raise GoalStateError(f"goal {goal_id} is {inspect.status(loom, goal_id)}", hint=f"loomq show {goal_id}")
    if as_json:
        emit({"schema_version": 1, "goal_id": str(goal_id), "resumed": is_resumed, "paused": False})
    else:
        print(f"resumed {goal_id}" if is_resumed else f"nothing to resume: {goal_id} is not paused")
