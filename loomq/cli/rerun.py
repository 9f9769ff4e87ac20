"""``loomq rerun``: run a goal again that has ended, as a new one that reuses what stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.completion import goal_ids, stage_names
from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import SECONDS, parse_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.loom import Loom
    from loomq.services.control import RerunPlan
    from loomq.services.submit import GoalHandle


@click.command("rerun")
@click.argument("goal", shell_complete=goal_ids)
@click.option("start", "--from", metavar="STAGE", shell_complete=stage_names, help="Run it and all below it again.")
@click.option(
    "changes",
    "--set",
    "-i",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for a key of the context, such as a.b or list.0; as -i of run. Repeatable.",
)
@click.option("--current", is_flag=True, help="Run what the project's files say now, not what they said then.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Wait for its end and show the result.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="With --wait: wait so long at most.")
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    goal: str,
    start: str | None,
    changes: Sequence[str],
    current: bool,
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run a GOAL again that has ended, as a new goal; prints the new goal's id.

    A stage runs again if it has no result, if its definition or what it reads of the context has changed, and if a
    stage before it runs again. Everything else is taken over. What will run is shown first.
    """
    from loomq.services import inspect
    from loomq.services.control import plan_of_rerun
    from loomq.services.submit import GoalHandle

    if timeout and not wait:
        raise click.UsageError("--timeout needs --wait")
    asked: dict[str, Any] = {"start": start, "changes": parse_inputs(changes), "current": current}
    loom = invocation.ready()
    goal_id = inspect.find(loom, goal)
    plan = plan_of_rerun(loom, goal_id, **asked)
    if not as_json:
        _show(plan)
        if not yes:
            _ask(plan)
    handle = GoalHandle(loom, goal_id).rerun(**asked)
    if not (wait and as_json):
        _tell(loom, handle, {"rerun_of": str(goal_id), **plan.to_json()}, as_json=as_json)
    if wait:
        _wait(loom, handle, timeout, as_json=as_json)


def _show(plan: RerunPlan) -> None:
    from loomq.cli.output import console, table

    shown = plan.to_json()
    rows = [(one["stage"], "runs", one["reason"]) for one in shown["runs"]]
    rows += [(one["stage"], "reused", one["reason"]) for one in shown["reuses"]]
    console(sys.stderr).print(table(("stage", "what", "why"), rows))


def _ask(plan: RerunPlan) -> None:
    counted = f"{len(plan.runs)} of {len(plan.runs) + len(plan.reused)} stages run again"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{counted}; say --yes to do it")
    click.confirm(f"{counted}; go on?", abort=True, err=True)


def _tell(loom: Loom, handle: GoalHandle, plan: dict[str, Any], *, as_json: bool) -> None:
    from loomq.cli.output import emit, say
    from loomq.cli.submit import remarks

    if as_json:
        emit({"schema_version": 1, "goal_id": str(handle.goal_id), **plan})
    else:
        print(handle.goal_id, flush=True)
    for remark in remarks(loom, handle):
        say(remark)


def _wait(loom: Loom, handle: GoalHandle, timeout_s: float | None, *, as_json: bool) -> None:
    from loomq.cli.waiting import follow, print_outcome, termination_as_interrupt

    with termination_as_interrupt():
        view = follow(loom, handle, timeout_s=timeout_s, as_json=as_json, afterwards="it goes on")
    print_outcome(view, as_json=as_json)
