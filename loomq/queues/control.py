"""Remote commands of a worker node: read the files again, and set a rate that holds for all nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, nok, ok
from celery.worker.control import rate_limit as celerys_rate_limit

from loomq.errors import LoomqError
from loomq.queues.app import task_queue
from loomq.queues.limits import read_rate
from loomq.queues.names import task_name as name_of_task
from loomq.queues.names import worker_of
from loomq.store import limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loomq.queues.app import LoomCelery

logger = logging.getLogger(__name__)

RELOAD = "loomq_reload"


def install() -> None:
    """Make Celery's workers know these commands; ``rate_limit`` takes the place of Celery's own."""
    control_command(name=RELOAD)(_reload)
    control_command(
        name="rate_limit",
        args=[("task_name", str), ("rate_limit", str)],
        signature="<task_name> <rate_limit (e.g., 5/s)>",
    )(_rate_limit)


def _reload(state: Any, **_: Any) -> dict[str, Any]:
    """Read the project's YAML again; what is broken is refused, and the node goes on with what it had."""
    app: LoomCelery = state.app
    if app.runner is None:
        return nok("this node has no project")  # type: ignore[no-any-return]
    try:
        change = app.runner.reload()
    except LoomqError as error:
        logger.warning("the project's files are not taken: %s", error.message)
        return nok(error.message) | {"refused": error.to_json()}  # type: ignore[no-any-return]
    new = _serve(state.consumer, app.router.queues_in_use)
    app.runner.serves(sorted(app.amqp.queues.consume_from), reloaded=True)
    told = "; ".join(f"{word}: {names}" for word, names in {**change, "queues": new}.items() if names)
    logger.info("the project's files were read again; %s", told or "nothing has changed")
    return ok("read again") | {"change": {**change, "queues": new}}  # type: ignore[no-any-return]


def _serve(consumer: Any, queues: Iterable[str]) -> list[str]:
    """Know the tasks, and consume the queues, that the files use by now.

    A node that was given its queues (``-Q``) keeps them; one of a tier takes what is new in its tier.

    Returns:
        The queues that it did not consume before.
    """
    consumer.update_strategies()
    known, new = consumer.app.amqp.queues, []
    own_tier = consumer.app.loom_settings.tier
    for queue in queues:
        if queue not in known:
            known.add(task_queue(queue, is_redis=consumer.app.is_redis))
        is_mine = (
            queue.endswith(f".{own_tier}") if own_tier else known._consume_from is None  # noqa: SLF001  (no other sign of -Q)
        )
        if is_mine and not consumer.task_consumer.consuming_from(queue):
            consumer.add_task_queue(queue)
            new.append(queue)
    return new


def _rate_limit(state: Any, task_name: str, rate_limit: Any, **more: Any) -> dict[str, Any]:
    """Tell worker(s) to modify the rate limit for a task by type; a loomq worker's holds over the whole cluster."""
    worker = worker_of(task_name) or (task_name if name_of_task(task_name) in state.app.tasks else None)
    if worker is None:
        return celerys_rate_limit(state, task_name, rate_limit, **more)  # type: ignore[no-any-return]
    rate = str(rate_limit or 0)
    try:
        per_s = read_rate(rate)
        if name_of_task(worker) not in state.app.tasks:
            return nok("unknown task")  # type: ignore[no-any-return]
        limits.override(state.app.database, f"worker:{worker}", rate, f"celery control, {state.hostname}")
    except ValueError as error:
        return nok(f"Invalid rate limit string: {error}")  # type: ignore[no-any-return]
    except LoomqError as error:
        return nok(error.message)  # type: ignore[no-any-return]
    state.app.limiter.learn({**state.app.limiter.rates, f"worker:{worker}": rate})
    if per_s:
        return ok(f"new rate limit set for the whole cluster: {rate}")  # type: ignore[no-any-return]
    return ok("rate limit disabled for the whole cluster")  # type: ignore[no-any-return]
