"""``loomq worker``: become Celery's own worker, for this project."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import TIERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.loom import Loom


@click.command("worker")
@click.option("queues", "-Q", "--queues", multiple=True, metavar="QUEUES", help="Default: those in use.")
@click.option("--tier", type=click.Choice(TIERS), help="Serve the queues in use of that tier.")
@click.option("--concurrency", "-c", type=click.IntRange(1), help="Slots; default: one a processor.")
@click.option("--pool", "-P", type=click.Choice(["prefork", "threads", "solo"]), help="Default: prefork.")
@click.option("--name", "-n", help="The node's name before the @.")
@click.argument("celery", nargs=-1, metavar="[-- CELERY OPTIONS]")
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    queues: Sequence[str],
    tier: str | None,
    concurrency: int | None,
    pool: str | None,
    name: str | None,
    celery: tuple[str, ...],
    as_json: bool,  # noqa: ARG001  (errors found before the worker starts are then JSON)
) -> None:
    """Be a worker node: Celery's own worker with this project's app, signals and all.

    The same as `celery -A loomq worker`; what follows `--` goes to it unchanged.
    """
    from loomq.services.nodes import environment_of, worker_command

    loom = invocation.loom(broker=True)
    wanted = [queue.strip() for part in queues for queue in part.split(",") if queue.strip()]
    if tier:
        wanted += _of_tier(loom, tier)
    _check(loom, wanted)
    line = worker_command(queues=wanted, concurrency=concurrency, pool=pool, name=name)
    loom.close()
    os.chdir(loom.settings.project)
    around = {**environment_of(loom), **({"LOOMQ_TIER": tier} if tier else {})}
    os.execvpe(line[0], [*line, *celery], around)  # noqa: S606  (a command of ours)


def _of_tier(loom: Loom, tier: str) -> list[str]:
    """List the queues in use of one tier; a node without any would serve them all."""
    from loomq.errors import UnknownNameError

    found = [queue for queue in loom.router.queues_in_use if queue.endswith(f".{tier}")]
    if not found:
        raise UnknownNameError(f"no worker of the project is served from tier {tier}", hint="see: loomq plan PIPELINE")
    return found


def _check(loom: Loom, queues: Sequence[str]) -> None:
    """Refuse what Celery would take: a queue that no goal will ever be on, and a database without our tables."""
    from loomq.errors import UnknownNameError
    from loomq.problems import suggest
    from loomq.services.setup import require_schema
    from loomq.services.targets import known_queues

    known = known_queues(loom)
    for queue in queues:
        if queue not in known:
            raise UnknownNameError(f'no worker is served from queue "{queue}"', hint=suggest(queue, known) or None)
    if not loom.is_embedded:
        require_schema(loom)
