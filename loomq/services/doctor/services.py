"""The doctor's look at services: database, schema, clock, worker nodes and broker; embedded ones are not started."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from loomq.embedded import client as embedded
from loomq.errors import LoomqError
from loomq.loom import Loom
from loomq.problems import listed
from loomq.services import inspect, schedules
from loomq.services.doctor.check import Check
from loomq.services.probes import probe_broker, probe_database, without_password
from loomq.services.queues import stuck
from loomq.store import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loomq.settings import Settings

_CLOCK_S = 1.0  # leases are on the server's clock; times in results would look odd beyond it


def database(settings: Settings, queues: Callable[[], Sequence[str]]) -> Iterator[Check]:
    """Look at Postgres and at what only it knows.

    Args:
        queues: Gives the queues that the project's files use.
    """
    loom = Loom(settings, lenient=True)  # what is wrong with files is told where they are looked at
    try:
        yield from _database(loom, queues)
    finally:
        loom.close()


def broker(settings: Settings) -> Iterator[Check]:
    """Look at the broker."""
    loom = Loom(settings, lenient=True)
    try:
        yield _broker(loom)
        yield from _limits(loom)
    finally:
        loom.close()


def _is_stopped(loom: Loom, name: str) -> bool:
    server = embedded.status(loom.services)["servers"].get(name)
    return not server or not server["answers"]


def _database(loom: Loom, queues: Callable[[], Sequence[str]]) -> Iterator[Check]:
    settings = loom.settings
    if settings.database_url is None and _is_stopped(loom, "postgres"):
        yield Check("postgres", "ok", "embedded; it is stopped, starts by itself and migrates by itself")
        yield Check("nodes", "ok", "none, since nothing runs; `loomq run` brings its own")
        return
    try:
        probe_database(settings)
        revision = migrate.current(loom.database)
    except LoomqError as error:
        yield Check("postgres", "fail", error.message, error.hint or "")
        return
    yield Check("postgres", "ok", f"{without_password(settings.database_url or loom.services.database_url)} answers")
    is_newer = migrate.is_newer(revision)
    if is_newer:
        told = f"revision {revision} of a newer loomq; this version knows none after {migrate.HEAD} and works with it"
        yield Check("schema", "warn", told, "upgrade loomq")
    elif revision != migrate.HEAD:
        told = f"is at revision {revision}" if revision else "has no tables yet"
        yield Check("schema", "fail", f"the database {told}; this version needs {migrate.HEAD}", "loomq db upgrade")
    else:
        yield Check("schema", "ok", f"revision {revision}")
    yield _clock(loom)
    if revision == migrate.HEAD or is_newer:
        yield _nodes(loom, queues())
        yield from _queues(loom)
        yield from _schedules(loom)


def _clock(loom: Loom) -> Check:
    before = datetime.now(UTC)
    server: datetime = loom.database.call("SELECT clock_timestamp()", {})[0][0]
    after = datetime.now(UTC)
    ahead_s = (before + (after - before) / 2 - server).total_seconds()
    if abs(ahead_s) > _CLOCK_S + (after - before).total_seconds() / 2:
        way = "ahead of" if ahead_s > 0 else "behind"
        return Check("clock", "warn", f"{abs(ahead_s):.1f} s {way} Postgres", "timedatectl set-ntp true")
    return Check("clock", "ok", f"within {max(abs(ahead_s) * 1000, 1):.0f} ms of Postgres")


def _nodes(loom: Loom, queues: Sequence[str]) -> Check:
    nodes = inspect.live_nodes(loom)
    served = {queue for node in nodes for queue in node.queues}
    lonely = [queue for queue in queues if queue not in served]
    if not nodes:
        return Check("nodes", "warn", "no live worker node; `loomq run` brings its own", "loomq worker")
    told = f"{len(nodes)} live with {sum(node.slots for node in nodes)} slots"
    if lonely:
        return Check("nodes", "warn", f"{told}; none serves {listed(lonely)}", f"loomq worker -Q {','.join(lonely)}")
    return Check("nodes", "ok", f"{told}; every queue in use is served")


def _queues(loom: Loom) -> Iterator[Check]:
    """Look for work that nobody will do."""
    found = stuck(loom)
    if found:
        told = listed([f"{queue.waiting} on {queue.name}" for queue in found])
        fix = f"loomq worker -Q {','.join(queue.name for queue in found)}"
        yield Check("queues", "warn", f"tasks wait on queues that no live node serves: {told}", fix)
    else:
        yield Check("queues", "ok", "nothing waits on a queue that nobody serves")


def _schedules(loom: Loom) -> Iterator[Check]:
    """Look whether somebody fires the schedules, if there are any."""
    view = schedules.beat(loom)
    if view.faults:
        yield Check("schedules", "warn", "; ".join(view.faults), "celery -A loomq beat" if view.leader is None else "")
    elif view.schedules:
        told = f"{len(view.firing)} on"
        yield Check("schedules", "ok", f"{told}; fired by {view.leader.who}" if view.leader else told)


def _limits(loom: Loom) -> Iterator[Check]:
    """Look whether the Redis is there that rates and token budgets need."""
    buckets = loom.configs.limits.all_buckets({})
    if not buckets:
        return
    told = listed([bucket.name for bucket in buckets])
    if loom.limits_url is None:
        yield Check(
            "limits",
            "fail",
            f"{told} need a Redis, and there is none: their tasks wait",
            "export LOOMQ_REDIS_URL=redis://…",
        )
        return
    if loom.limits_url == loom.services.broker_url and _is_stopped(loom, "redis"):
        yield Check("limits", "ok", f"{told}; kept in the embedded Redis")
        return
    try:
        loom.app.limiter.look(buckets)
    except LoomqError as error:
        yield Check("limits", "fail", f"{error.message}: tasks under a limit wait", error.hint or "")
    else:
        yield Check("limits", "ok", told)


def _broker(loom: Loom) -> Check:
    settings = loom.settings
    if settings.broker_url is None and _is_stopped(loom, "redis"):
        return Check("broker", "ok", "embedded; it is stopped and starts by itself")
    try:
        probe_broker(settings)
        loom.app.broker.ping()
    except LoomqError as error:
        return Check("broker", "fail", error.message, error.hint or "")
    return Check("broker", "ok", f"{without_password(loom.broker_url)} answers")
