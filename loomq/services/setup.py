"""Is everything there that a goal needs: the database with this version's schema, the broker, worker nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.embedded import client as embedded
from loomq.errors import EnvironmentNotReadyError, LoomqError, SchemaOutdatedError
from loomq.services import inspect, queues, schedules
from loomq.services.probes import probe_broker, probe_database, without_password
from loomq.services.sweep import leader, leader_json
from loomq.store import goals, migrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.loom import Loom
    from loomq.services.inspect import NodeView
    from loomq.services.queues import QueueView
    from loomq.services.schedule_views import BeatView
    from loomq.store.nodes import Leader

HEAD = migrate.HEAD


@dataclass(frozen=True)
class ServiceView:
    """How one service is.

    Args:
        state: ``answers``, ``unreachable`` or, for an embedded one that nobody uses just now, ``stopped``.
        error: Why it can't be used, in its JSON form.
    """

    url: str
    is_embedded: bool
    state: str
    error: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe the service."""
        return {"url": self.url, "embedded": self.is_embedded, "state": self.state, "error": self.error}


@dataclass(frozen=True)
class SetupView:
    """How everything is that goals need.

    Args:
        revision: The schema's revision; ``None`` if the database is empty or was not asked.
        open_goals: Goals that have not ended; ``None`` if the database was not asked.
        sweeper: Who leads the sweeping, if anybody does.
        beat: Who fires the schedules, and how they go; ``None`` if the database was not asked.
        stuck: Queues on which something waits and that no live node serves.
        fault: What stops goals from being run, if anything does.
    """

    project: str
    data_dir: str
    database: ServiceView
    broker: ServiceView
    revision: str | None = None
    open_goals: int | None = None
    nodes: tuple[NodeView, ...] = ()
    sweeper: Leader | None = None
    beat: BeatView | None = None
    stuck: tuple[QueueView, ...] = ()
    fault: LoomqError | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe the setup."""
        return {
            "schema_version": inspect.SCHEMA_VERSION,
            "ready": self.fault is None,
            "project": self.project,
            "data_dir": self.data_dir,
            "database": {**self.database.to_json(), "revision": self.revision, "head": HEAD},
            "broker": self.broker.to_json(),
            "open_goals": self.open_goals,
            "nodes": [node.to_json() for node in self.nodes],
            "sweeper": leader_json(self.sweeper),
            "beat": self.beat.to_json() if self.beat else None,
            "unserved": [queue.to_json() for queue in self.stuck],
        }


def require_schema(loom: Loom) -> None:
    """Make sure that the database is there, with this version's schema; starts and migrates an embedded one.

    Raises:
        DatabaseUnavailableError: It does not answer.
        SchemaOutdatedError: It has an older version's schema, or none; a newer version's serves this one too.
        EmbeddedServiceError: The embedded one cannot be started.
    """
    fault = _schema_fault(migrate.current(loom.database))
    if fault:
        raise fault


def require_broker(loom: Loom) -> None:
    """Make sure that the broker answers; starts an embedded one.

    Raises:
        BrokerUnavailableError: It does not.
        EmbeddedServiceError: The embedded one cannot be started.
    """
    loom.app.broker.ping()


def revision(loom: Loom) -> str | None:
    """Name the revision of the database's schema, or ``None`` if it is empty."""
    return migrate.current(loom.database)


def is_newer(revision: str | None) -> bool:
    """Say whether that is a newer version's schema, with which this one can go on working."""
    return migrate.is_newer(revision)


def upgrade(loom: Loom) -> str:
    """Bring the database to this version's schema, and name its revision.

    Raises:
        DatabaseUnavailableError: It does not answer.
        SchemaNewerError: A newer version has migrated it.
        EnvironmentNotReadyError: Other sessions keep its tables from being changed.
    """
    return migrate.upgrade(loom.database)


def database_answers(loom: Loom) -> bool:
    """Say whether the database can be asked right now; starts nothing."""
    url = loom.settings.database_url
    view, _ = _look(loom, "postgres", url, (lambda: probe_database(loom.settings), lambda: revision(loom)))
    return view.state == "answers"


def survey(loom: Loom) -> SetupView:
    """Look at everything and start nothing: an embedded service that nobody uses is ``stopped``, which is fine."""
    settings = loom.settings
    database, database_fault = _look(
        loom, "postgres", settings.database_url, (lambda: probe_database(settings), lambda: revision(loom))
    )
    broker, broker_fault = _look(
        loom, "redis", settings.broker_url, (lambda: probe_broker(settings), lambda: require_broker(loom))
    )
    found = SetupView(
        project=str(settings.project),
        data_dir=str(loom.services.data_dir),
        database=database,
        broker=broker,
        fault=database_fault or broker_fault,
    )
    return _with_database(loom, found) if database.state == "answers" else found


def _look(
    loom: Loom, name: str, url: str | None, checks: tuple[Callable[[], object], ...]
) -> tuple[ServiceView, LoomqError | None]:
    where = without_password(url or (loom.services.database_url if name == "postgres" else loom.services.broker_url))
    try:
        if url is None:
            server = embedded.status(loom.services)["servers"].get(name)
            if not server or not server["answers"]:
                return ServiceView(where, is_embedded=True, state="stopped"), None
        for check in checks:
            check()
    except EnvironmentNotReadyError as error:
        return ServiceView(where, url is None, "unreachable", error.to_json()), error
    return ServiceView(where, url is None, "answers"), None


def _with_database(loom: Loom, found: SetupView) -> SetupView:
    current = migrate.current(loom.database)
    fault = _schema_fault(current)
    more: dict[str, Any] = {"revision": current, "fault": fault or found.fault}
    if fault is None:
        more |= {
            "open_goals": goals.count_open(loom.database),
            "nodes": tuple(inspect.live_nodes(loom)),
            "sweeper": leader(loom),
            "beat": schedules.beat(loom),
            "stuck": tuple(queues.stuck(loom)),
        }
    return SetupView(**{**found.__dict__, **more})


def _schema_fault(current: str | None) -> SchemaOutdatedError | None:
    if current == HEAD or migrate.is_newer(current):
        return None
    has = f"is at revision {current}" if current else "has no tables yet"
    return SchemaOutdatedError(f"the database {has}; this version needs revision {HEAD}", hint="run: loomq db upgrade")
