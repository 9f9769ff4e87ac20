"""``loomq cancel``: end goals before their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.completion import goal_ids
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("cancel")
@click.argument("goals", nargs=-1, required=True, shell_complete=goal_ids)
@click.option("--reason", help="Why, for whoever looks at the goals.")
@json_option
@pass_invocation
def command(invocation: Invocation, goals: Sequence[str], reason: str | None, as_json: bool) -> None:
    """End GOALS: what waits is cancelled, what runs is interrupted, what is finished is kept.

    A goal that has ended stays as it is.
    """
    from loomq.cli.output import emit
    from loomq.services import control, inspect

    loom = invocation.ready()
    found = [inspect.find(loom, goal) for goal in goals]  # all of them first: a mistyped id must not stop it half-way
    told = []
    for goal_id in found:
        is_cancelled = control.cancel(loom, goal_id, **({"reason": reason} if reason else {}))
        status = inspect.status(loom, goal_id)
        told.append({"goal_id": str(goal_id), "cancelled": is_cancelled, "status": str(status)})
        if not as_json:
            print(f"cancelled {goal_id}" if is_cancelled else f"nothing to cancel: {goal_id} is {status}")
    if as_json:
        emit({"schema_version": 1, "goals": told})
