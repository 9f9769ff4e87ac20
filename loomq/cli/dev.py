"""``loomq dev``: services, a worker node and beat in one process tree, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.loom import Loom
    from loomq.services.nodes import Child

_LOOK_EVERY_S = 0.2


@click.command("dev")
@click.option("--concurrency", "-c", type=click.IntRange(1), help="Slots; default: one a processor.")
@click.option("--pool", "-P", type=click.Choice(["prefork", "threads", "solo"]), help="Default: prefork.")
@click.option("--no-beat", is_flag=True, help="Run no schedules.")
@json_option
@pass_invocation
def command(invocation: Invocation, concurrency: int | None, pool: str | None, no_beat: bool, as_json: bool) -> None:
    """Run services, a worker node and beat until Ctrl-C, with their output on this terminal.

    Ctrl-C or SIGTERM ends all of them in good order, which is exit code 0; once more, at once.
    """
    from loomq.cli.output import notice_if_slow, say
    from loomq.cli.waiting import termination_as_interrupt
    from loomq.services import nodes, setup

    loom = invocation.loom(broker=True)
    loom.catalog  # noqa: B018  (its errors are told before anything starts)
    children: list[Child] = []
    with termination_as_interrupt():
        try:
            with notice_if_slow("starting the private Postgres and Redis …"):
                setup.require_schema(loom)
                setup.require_broker(loom)
            line = nodes.worker_command(concurrency=concurrency, pool=pool, name="dev")
            children.append(nodes.Child(loom, "worker", line, log=None))
            if not no_beat:
                children.append(nodes.Child(loom, "beat", nodes.beat_command(), log=None))
            nodes.wait_until_live(loom, children[0])
            _tell(loom, as_json=as_json)
            while True:
                for child in children:
                    child.check()
                time.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            say(f"\nstopping: up to {loom.settings.shutdown_seconds:g} s for what runs; once more ends it at once")
        finally:
            _stop(children)


def _stop(children: Sequence[Child]) -> None:
    """End them all; a second Ctrl-C is taken for impatience."""
    for child in children:
        child.ask_to_stop()
    grace_s = None
    for child in children:
        try:
            child.stop(grace_s)
        except KeyboardInterrupt:
            grace_s = 0
            child.stop(grace_s)


def _tell(loom: Loom, *, as_json: bool) -> None:
    """Say where everything is, and what to type in another terminal."""
    from loomq.cli.output import emit, say
    from loomq.services.probes import without_password

    settings = loom.settings
    database, broker = settings.database_url or loom.services.database_url, loom.broker_url
    catalog = loom.catalog
    names = [*sorted(catalog.pipelines), *sorted(catalog.orchestrators), *sorted(catalog.workers)]
    if as_json:
        emit(
            {
                "schema_version": 1,
                "project": str(settings.project),
                "data_dir": str(loom.services.data_dir),
                "database_url": without_password(database),
                "broker_url": without_password(broker),
                "names": names,
            }
        )
        sys.stdout.flush()
        return
    say(
        "\n".join(
            [
                "",
                f"loomq dev is ready: {settings.project}",
                f"  Postgres  {without_password(database)}",
                f"  broker    {without_password(broker)}",
                f"  data      {loom.services.data_dir}",
                f"  logs      {loom.services.data_dir / 'logs'}",
                f"in another terminal:  loomq run {names[0] if names else 'NAME'}",
                "                      loomq list",
                "Ctrl-C ends everything",
                "",
            ]
        )
    )
