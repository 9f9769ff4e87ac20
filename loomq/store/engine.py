"""The connection to Postgres: one engine a process, made on first use, safe over forks."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import OperationalError

from loomq.errors import DatabaseUnavailableError, SchemaOutdatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_UNDEFINED = {"42P01", "42883"}  # undefined table, undefined function


def sqlalchemy_url(url: str) -> str:
    """Name the psycopg driver in a Postgres URL that names none, and take the ``postgres://`` spelling."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url[len(prefix) :]
    return url


class Database:
    """Give connections to one Postgres.

    After a fork the child makes its own engine and never closes what the parent opened.

    Args:
        url: A SQLAlchemy or libpq URL.
        prepare: Called before a process's first connection, and again after a lost one: starts embedded services.
        pooled: False closes each connection after its use, for a process that will fork.
        connect_timeout_s: How long one attempt to connect may take; at least 2 s, which is libpq's least.
        pool_size: Connections kept open; as many again may be opened under load.
    """

    def __init__(
        self,
        url: str,
        *,
        prepare: Callable[[], None] | None = None,
        pooled: bool = True,
        connect_timeout_s: int = 2,
        pool_size: int = 4,
    ) -> None:
        self.url = make_url(sqlalchemy_url(url))
        self._prepare = prepare
        self._pooled = pooled
        self._connect_timeout_s = connect_timeout_s
        self._pool_size = pool_size
        self._engine: Engine | None = None
        self._is_prepared = False
        self._pid = 0

    def keep_no_connections(self) -> None:
        """Close each connection after its use from now on; for the parent of a pool of forked children."""
        self.close()
        self._pooled = False

    @property
    def engine(self) -> Engine:
        """This process's engine."""
        if self._pid != os.getpid():
            if self._engine is not None:
                self._engine.dispose(close=False)
            self._engine, self._pid, self._is_prepared = None, os.getpid(), False
        if not self._is_prepared:
            if self._prepare is not None:
                self._prepare()
            self._is_prepared = True
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def _make_engine(self) -> Engine:
        arguments: dict[str, Any] = {
            "connect_timeout": self._connect_timeout_s,
            "prepare_threshold": None,  # prepared statements break behind a pooler in transaction mode
            "application_name": "loomq",
            "options": "-c timezone=UTC",
        }
        pool: dict[str, Any] = (
            {"pool_size": self._pool_size, "max_overflow": self._pool_size, "pool_timeout": 10}
            if self._pooled
            else {"poolclass": NullPool}
        )
        engine = create_engine(self.url, connect_args=arguments, **pool)
        event.listen(engine, "handle_error", _translate, retval=True)
        return engine

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open one transaction, committed at the end of the block.

        Raises:
            DatabaseUnavailableError: Postgres does not answer, or went away meanwhile.
            SchemaOutdatedError: It answers, and has not been migrated.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise self._unavailable(error) from error

    def call(self, statement: str, parameters: Mapping[str, Any]) -> list[Any]:
        """Run one statement in one round trip, outside an explicit transaction, and give its rows.

        Args:
            statement: SQL with psycopg's ``%(name)s`` parameters.
            parameters: Their values.

        Raises:
            DatabaseUnavailableError, SchemaOutdatedError: As ``begin``.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                result = connection.exec_driver_sql(statement, dict(parameters))
                return list(result) if result.returns_rows else []
        except OperationalError as error:
            raise self._unavailable(error) from error

    def listen(self, url: str | None = None) -> psycopg.Connection[Any]:
        """Open a connection of its own for ``LISTEN``, past any pooler.

        Args:
            url: The direct URL, if ``database_url`` is a pooler's.
        """
        self.engine  # noqa: B018  (starts embedded services before the first connection)
        target = make_url(sqlalchemy_url(url)) if url else self.url
        try:
            return psycopg.connect(
                target.set(drivername="postgresql").render_as_string(hide_password=False),
                autocommit=True,
                connect_timeout=self._connect_timeout_s,
            )
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> DatabaseUnavailableError:
        """Say in one line why Postgres could not be used, without its password."""
        self._is_prepared = False
        cause = getattr(error, "orig", None) or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return DatabaseUnavailableError(
            f"Postgres at {self.url.render_as_string(hide_password=True)} does not answer: {reason}",
            hint="start it, correct LOOMQ_DATABASE_URL, or unset it to use the embedded Postgres",
        )

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
        self._engine = None


def _translate(context: Any) -> Exception | None:
    cause = context.original_exception
    if isinstance(cause, psycopg.Error) and cause.sqlstate in _UNDEFINED:
        return SchemaOutdatedError(
            f"the database does not have this version's tables: {str(cause).splitlines()[0]}",
            hint="run: loomq db upgrade",
        )
    return None
