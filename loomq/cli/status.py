"""``loomq status``: whether services, schema and worker nodes are well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.schedule_views import BeatView
    from loomq.services.setup import SetupView


@click.command("status")
@json_option
@pass_invocation
def command(invocation: Invocation, as_json: bool) -> None:
    """Show whether services, schema and worker nodes are well; starts nothing.

    Embedded services that nobody uses are stopped; the next command that needs them starts them.
    """
    from loomq.cli.output import emit
    from loomq.services.setup import survey

    view = survey(invocation.loom(database=False, broker=False, lenient=True))
    if as_json:
        emit(view.to_json())
    else:
        _print(view)
    if view.fault:
        raise view.fault


def _print_beat(view: BeatView) -> None:
    from loomq.cli.output import clock, console

    out = console()
    firing, count = len(view.firing), len(view.schedules)
    told = f"{count} {'schedule' if count == 1 else 'schedules'}" + (f", {firing} of them on" if firing < count else "")
    if view.leader is not None:
        who, since, last = view.leader.who, clock(view.leader.since), clock(view.leader.renewed_at)
        out.print(f"beat     {who} since {since}, last look {last}; {told}", soft_wrap=True)
    else:
        out.print(f"beat     {told}; no beat runs")
    for fault in view.faults:
        out.print(f"         {fault}", soft_wrap=True)
    out.print()


def _print(view: SetupView) -> None:
    from loomq.cli.output import clock, console, duration, table

    out = console()
    services = (("Postgres", view.database), ("broker", view.broker))
    out.print(f"project  {view.project}\ndata     {view.data_dir}\n", soft_wrap=True)
    rows = [(name, found.state, "embedded" if found.is_embedded else "yours", found.url) for name, found in services]
    out.print(table(("service", "state", "kind", "where"), rows))
    if view.revision:
        out.print(f"\nschema   {view.revision}")
    if view.open_goals is None:
        return
    out.print(f"open     {view.open_goals} {'goal' if view.open_goals == 1 else 'goals'}")
    if view.sweeper is None:
        out.print("sweeper  nobody sweeps: what is lost on the way is not found\n")
    else:
        who, since, last = view.sweeper.who, clock(view.sweeper.since), clock(view.sweeper.renewed_at)
        out.print(f"sweeper  {who} since {since}, last pass {last}\n")
    if view.beat is not None and (view.beat.leader or view.beat.schedules):
        _print_beat(view.beat)
    for queue in view.stuck:
        tasks = f"{queue.waiting} {'task' if queue.waiting == 1 else 'tasks'}"
        waits = f"{tasks} on {queue.name} for {duration((queue.oldest_s or 0) * 1000)}"
        out.print(f"waiting  {waits}, and no live node serves it: loomq worker -Q {queue.name}\n")
    if not view.nodes:
        out.print("no live worker node; start one: loomq worker, or loomq dev")
        return
    headers = ("node", "pid", "pool", "slots", "since", "queues")
    nodes = [
        (node.hostname, node.pid, node.pool, node.slots, clock(node.started_at), ", ".join(node.queues))
        for node in view.nodes
    ]
    out.print(table(headers, nodes, right=("pid", "slots")), soft_wrap=True)
