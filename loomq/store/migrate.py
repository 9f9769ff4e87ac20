"""Bring a database to this version's schema, and tell one that a newer version has migrated."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from loomq.errors import EnvironmentNotReadyError, SchemaNewerError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection

    from loomq.store.engine import Database

HEAD = "0009"  # this version's newest revision, spelled out since asking Alembic costs half a second
_LOCK = 0x6C6F6F6D71  # "loomq", the advisory lock of whoever migrates
_MIGRATIONS = Path(__file__).parent / "migrations"
_IN_THE_WAY = {"55P03", "40P01"}  # lock not available in time, deadlock
_LOCK_WAIT_S = 1.0
_PATIENCE_S = 60.0


class _BlockedError(Exception):
    """Somebody held a lock that the migration needs for longer than it waits; the transaction was rolled back."""


def config() -> Config:
    """Give Alembic's configuration of our migrations."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", str(_MIGRATIONS))
    return found


def current(database: Database) -> str | None:
    """Name the revision that a database is at, or ``None`` if it is empty."""
    with database.begin() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def is_newer(revision: str | None) -> bool:
    """Say whether a database's revision is none that this version knows: a newer version has migrated it.

    That is no reason to stop: a newer schema keeps serving the nodes of the version before.
    """
    known = {file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("*.py")}
    return revision is not None and revision not in known


def upgrade(database: Database, *, lock_wait_s: float = _LOCK_WAIT_S, patience_s: float = _PATIENCE_S) -> str:
    """Migrate to the newest revision; several processes may ask at once, and one of them does it.

    Nodes may work meanwhile. A table's change needs the table for itself, and whoever comes after it in the queue waits
    with it; so it waits for no more than a moment, lets the others pass, and tries again.

    Args:
        lock_wait_s: How long one attempt waits for a table.
        patience_s: How long to go on trying.

    Returns:
        The revision reached.

    Raises:
        SchemaNewerError: A newer version has migrated it already.
        EnvironmentNotReadyError: Somebody held on to a table for ``patience_s``.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            with database.begin() as connection:
                _upgrade(connection, lock_wait_s)
        except _BlockedError:
            if time.monotonic() >= until:
                raise EnvironmentNotReadyError(
                    f"the database was not migrated: other sessions held its tables for {patience_s:g} s"
                    + _holders(database),
                    hint="let them end, or end them (pg_terminate_backend), and run: loomq db upgrade",
                ) from None
        else:
            return HEAD
        time.sleep(random.uniform(lock_wait_s / 2, lock_wait_s))  # noqa: S311


def _upgrade(connection: Connection, lock_wait_s: float) -> None:
    from alembic import command

    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    found = _revision(connection)
    if is_newer(found):
        raise SchemaNewerError(
            f"the database is at revision {found}; this version knows none after {HEAD}",
            hint="a newer loomq has migrated it; this one can go on working with it, and has nothing to upgrade",
        )
    if found == HEAD:
        return
    connection.execute(
        text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": f"{round(lock_wait_s * 1000)}ms"}
    )
    alembic = config()
    alembic.attributes["connection"] = connection
    try:
        command.upgrade(alembic, "head")
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) in _IN_THE_WAY:
            raise _BlockedError from error
        raise


def _holders(database: Database) -> str:
    """Name the sessions whose transactions have been open the longest, which are those in the way."""
    rows = database.call(
        "SELECT DISTINCT a.pid, a.application_name, a.state, round(extract(epoch FROM now() - a.xact_start))::integer"
        " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.granted AND c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND a.pid <> pg_backend_pid() AND a.xact_start < now() - interval '1 s' ORDER BY 4 DESC LIMIT 3",
        {},
    )
    told = [f"pid {pid} ({name or 'unnamed'}, {state}, for {age} s)" for pid, name, state, age in rows]
    return f": {', '.join(told)}" if told else ""
