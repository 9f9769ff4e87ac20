"""``loomq pause``: start nothing more of a goal for now."""

from __future__ import annotations

import click

from loomq.cli.completion import goal_ids
from loomq.cli.options import Invocation, json_option, pass_invocation


@click.command("pause")
@click.argument("goal", shell_complete=goal_ids)
@json_option
@pass_invocation
def command(invocation: Invocation, goal: str, as_json: bool) -> None:
    """Start nothing more of a GOAL until `loomq resume`; what runs goes on to its end, and a deadline stands."""
    from loomq.cli.output import emit, say
    from loomq.errors import GoalStateError
    from loomq.services import control, inspect

    loom = invocation.ready()
    goal_id = inspect.find(loom, goal)
    if not control.pause(loom, goal_id):
        raise GoalStateError(f"goal {goal_id} is {inspect.status(loom, goal_id)}", hint=f"loomq show {goal_id}")
    if as_json:
        emit({"schema_version": 1, "goal_id": str(goal_id), "paused": True})
    else:
        print(f"paused {goal_id}")
        say(f"let it go on: loomq resume {goal_id}")
