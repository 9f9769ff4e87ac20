"""``loomq run``: everything in one go, from services to the result."""

from __future__ import annotations

import click

from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import Request, request_options


@click.command("run")
@request_options
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Wait so long at most.")
@click.option("--concurrency", "-c", type=click.IntRange(1), help="Slots of the private worker node.")
@click.option("--no-worker", is_flag=True, help="Start no worker node: others serve the queues.")
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    request: Request,
    timeout: float | None,
    concurrency: int | None,
    no_worker: bool,
    as_json: bool,
) -> None:
    """Run a pipeline, an orchestrator or a worker here and now, and show its result.

    Starts what is missing: the embedded services, and a private worker node unless live nodes serve the queues.
    The goal is written down first, so it outlives this command: see it with `loomq show`.
    """
    from loomq.cli.output import notice_if_slow, say
    from loomq.cli.waiting import ended, follow, print_outcome, termination_as_interrupt
    from loomq.services import nodes
    from loomq.services.setup import require_broker, require_schema

    loom = invocation.loom(broker=True)
    request.check(loom)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for services …"):
        require_schema(loom)
        require_broker(loom)
    with termination_as_interrupt():
        handle = request.submit(loom)
        node = nodes.NodeAtHand(loom, nodes.queues_of(loom, handle.goal_id), concurrency, wanted=not no_worker)
        try:
            view = follow(
                loom,
                handle,
                timeout_s=timeout,
                as_json=as_json,
                afterwards="it is kept, and goes on while a worker serves it: loomq dev",
                check=node.look,
            )
            print_outcome(view, as_json=as_json)
        except KeyboardInterrupt:
            say("ending the worker; once more ends it at once")
            try:
                node.stop()
            except KeyboardInterrupt:
                node.stop(grace_s=0)
            outcome = ended(loom, handle)  # in the time that the node had left
            if outcome is None:
                raise
            print_outcome(outcome, as_json=as_json)
            return
        except BaseException:
            node.stop()
            raise
        # The goal has ended, and Celery takes two seconds to leave: no need to watch it go.
        node.ask_to_stop()
