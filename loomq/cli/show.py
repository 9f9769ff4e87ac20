"""``loomq show``: one goal with its stages, where its time went, its errors and its result."""

from __future__ import annotations

import click

from loomq.cli.completion import goal_ids
from loomq.cli.options import Invocation, json_option, pass_invocation


@click.command("show")
@click.argument("goal", shell_complete=goal_ids)
@json_option
@pass_invocation
def command(invocation: Invocation, goal: str, as_json: bool) -> None:
    """Show a GOAL, named by its id or the beginning of it."""
    from loomq.cli.gantt import print_timing
    from loomq.cli.goal import print_faults, print_head, print_notes, print_result, print_stages, print_way_back
    from loomq.cli.output import emit, notice_if_slow
    from loomq.cli.rounds import print_rounds
    from loomq.services import inspect
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"):
        require_schema(loom)
    view = inspect.detailed(loom, inspect.find(loom, goal))
    if as_json:
        emit(view.to_json())
        return
    print_head(view)
    print_stages(view)
    print_notes(view)
    print_rounds(view)
    print_timing(view.timing)
    print_faults(view)
    print_result(view)
    print_way_back(view)
