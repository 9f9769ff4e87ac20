"""``loomq limits``: how full each limit is, and a rate set by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.watching import show, watch_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from loomq.services.limits import LimitView

_KINDS = {"rate": "starts", "tokens": "tokens", "concurrency": "at once", "key": "at once"}


@click.group("limits", invoke_without_command=True)
@watch_option
@json_option
@click.pass_context
def command(context: click.Context, watch: bool, as_json: bool) -> None:
    """Show how full each limit is: of what, how much is in use, how many tasks wait, and when the next may start.

    Limits stand in the workers' files (rate_limit, max_concurrent, concurrency_key) and in deploy/router_rules.yaml;
    they hold over the whole cluster.
    """
    if context.invoked_subcommand is not None:
        return
    from loomq.services import limits

    loom = context.ensure_object(Invocation).ready(lenient=True)

    def look() -> tuple[dict[str, Any], RenderableType]:
        found = limits.survey(loom)
        return {"schema_version": 1, "limits": [limit.to_json() for limit in found]}, _seen(found)

    show(look, as_json=as_json, watch=watch)


def _seen(found: Sequence[LimitView]) -> RenderableType:
    from rich.console import Group

    from loomq.cli.output import duration, table

    if not found:
        return "no limits"
    headers = ("limit", "of", "set to", "in use", "most", "waiting", "next", "by hand")
    rows = [
        (
            limit.name,
            _KINDS[limit.kind],
            limit.limit,
            limit.used,
            limit.most,
            limit.waiting,
            "a task's end" if limit.next_s is None else duration(limit.next_s * 1000) if limit.next_s else "now",
            limit.set_by,
        )
        for limit in found
    ]
    faults = dict.fromkeys(limit.fault for limit in found if limit.fault)
    return Group(table(headers, rows, right=("in use", "most", "waiting", "next")), *map(str, faults))


@command.command("set")
@click.argument("name", metavar="WORKER|tier:TIER")
@click.argument("rate")
@json_option
@pass_invocation
def set_(invocation: Invocation, name: str, rate: str, as_json: bool) -> None:
    """Set the RATE of a worker, or of a tier, for all nodes that run and all that will: 10/s, 100/m; 0 takes it off.

    It wins over the files until `loomq limits reset`. `celery -A loomq control rate_limit loomq.worker.NAME RATE` does
    the same.
    """
    from loomq.cli.output import emit, say
    from loomq.services import limits

    loom = invocation.ready()
    try:
        found = limits.set_rate(loom, name, rate)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="RATE") from error
    if as_json:
        emit({"schema_version": 1, "limit": found, "rate": rate})
    else:
        told = f"is {rate}" if float(rate.partition("/")[0]) else "has no rate"
        say(f"{found} {told} from now on; take it back: loomq limits reset {found}")


@command.command("reset")
@click.argument("name", metavar="WORKER|tier:TIER")
@json_option
@pass_invocation
def reset(invocation: Invocation, name: str, as_json: bool) -> None:
    """Let a rate be what the files say again."""
    from loomq.cli.output import emit, say
    from loomq.services import limits

    found, done = limits.reset_rate(invocation.ready(), name)
    if as_json:
        emit({"schema_version": 1, "limit": found, "reset": done})
    else:
        say(f"{found} is what the files say again" if done else f"nobody had set {found} by hand")
