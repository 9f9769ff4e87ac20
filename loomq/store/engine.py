"""The connection to Postgres: one engine a process, made on first use, safe over forks."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from loomq.errors import DatabaseUnavailableError, SchemaOutdatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_UNDEFINED = {"42P01", "42703", "42883"}  # undefined table, column, function
_VICTIM = {"40P01", "40001"}  # deadlock, serialization failure
_LOST = (OperationalError, InterfaceError, PoolTimeoutError)
_BROKEN = (psycopg.OperationalError, psycopg.InterfaceError)
_PLACE_S = 10.0
_PREPARED_AFTER = 3  # uses of a statement


_answer_until: ContextVar[float | None] = ContextVar("answer_until", default=None)


class _Bounded(psycopg.Connection[Any]):
    """A connection that is closed when its server does not answer by the time that ``Database.call`` set."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server; psycopg calls this for every statement."""
        until = _answer_until.get()
        if until is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(until - time.monotonic(), 0.001))
        except psycopg.OperationalError as error:
            if time.monotonic() < until:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("no word on an open connection") from error


def sqlalchemy_url(url: str) -> str:
    """Name the psycopg driver in a Postgres URL that names none, and take the ``postgres://`` spelling."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url[len(prefix) :]
    return url


class Listener:
    """A connection that hears what is notified on its channel."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def wait(self, timeout_s: float, wanted: Callable[[str], bool]) -> bool:
        """Wait for a payload that is wanted; False if none came in time."""
        return any(wanted(note.payload) for note in self._connection.notifies(timeout=timeout_s))


class Database:
    """Give connections to one Postgres.

    After a fork the child makes its own engine and never closes what the parent opened.

    Args:
        url: A SQLAlchemy or libpq URL.
        prepare: Called before a process's first connection, and again after a lost one: starts embedded services.
        pooled: False closes each connection after its use, for a process that will fork.
        connect_timeout_s: How long one attempt to connect may take; at least 2 s, which is libpq's least.
        pool_size: Connections that SQLAlchemy keeps open; as many again may be opened under load. ``call`` has up to
            twice as many of its own and keeps them: to open one costs more than most calls.
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
        self._lock = threading.RLock()
        self._places = threading.BoundedSemaphore(2 * pool_size)
        self._idle: list[_Bounded] = []  # connections of ``call``, which goes past SQLAlchemy
        self._arguments: dict[str, Any] = {}
        self._is_direct: bool | None = None
        #: Hears each statement of ``call`` with its parameters, for whoever records them.
        self.on_call: Callable[[str, Mapping[str, Any]], None] | None = None
        self._listener: tuple[int, psycopg.Connection[Any]] | None = None

    def pool_connections(self, wanted: bool) -> None:
        """Keep connections open between uses, or (for the parent of forked children) close each after its use."""
        self.close()
        self._pooled = wanted

    @property
    def engine(self) -> Engine:
        """This process's engine."""
        if self._pid not in {0, os.getpid()}:
            self._lock = threading.RLock()  # another thread of the parent may have held it at the fork
        with self._lock:
            if self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)
                self._idle = []  # the parent's; collected here they are not closed
                self._engine, self._pid, self._is_prepared = None, os.getpid(), False
            if not self._is_prepared:
                if self._prepare is not None:
                    self._prepare()
                self._is_prepared = True
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    def _make_engine(self) -> Engine:
        self._places = threading.BoundedSemaphore(2 * self._pool_size)
        self._arguments = arguments = {
            "connect_timeout": self._connect_timeout_s,
            "prepare_threshold": None,  # prepared statements break behind a pooler in transaction mode
            "application_name": "loomq",
            # A server that vanished without a word must not hold us for the kernel's quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        }
        pool: dict[str, Any] = (
            {"pool_size": self._pool_size, "max_overflow": self._pool_size, "pool_timeout": 10}
            if self._pooled
            else {"poolclass": NullPool}
        )
        # Parameters are users' payloads: they stay out of error texts.
        engine = create_engine(self.url, connect_args=arguments, hide_parameters=True, **pool)
        event.listen(engine, "handle_error", _translate, retval=True)
        event.listen(engine, "do_connect", lambda _dialect, _record, args, named: _Bounded.connect(*args, **named))
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
        except _LOST as error:
            raise self._unavailable(error) from error

    def call(self, statement: str, parameters: Mapping[str, Any], *, within_s: float | None = None) -> list[Any]:
        """Run one statement in one round trip, outside an explicit transaction, and give its rows.

        It may be made again: if a pooled connection turns out to be dead, or if Postgres chose it as a deadlock's
        victim. Every statement of the store stands that.

        Args:
            statement: SQL with psycopg's ``%(name)s`` parameters.
            parameters: Their values.
            within_s: Seconds after which an open connection that does not answer is given up: a stopped server keeps
                its sockets open for ever. Connecting has its own limit.

        Raises:
            DatabaseUnavailableError, SchemaOutdatedError: As ``begin``.
        """
        self.engine  # noqa: B018  (prepares services, and makes this process's places)
        if self.on_call is not None:
            self.on_call(statement, parameters)
        places = self._places
        until = None if within_s is None else time.monotonic() + within_s
        if not places.acquire(timeout=_PLACE_S if within_s is None else within_s):
            raise self._unavailable(TimeoutError("every connection waits for an answer"))
        try:
            return self._call(statement, parameters, until)
        finally:
            places.release()

    def _call(self, statement: str, parameters: Mapping[str, Any], until: float | None) -> list[Any]:
        """Make a call on a connection of its own: what SQLAlchemy does around each costs more than a small task."""
        for is_last in (False, False, True):
            kept = bool(self._idle)
            before = _answer_until.set(until)
            try:
                return self._once(statement, parameters)
            except _BROKEN as error:
                # A kept connection may have died long ago; a new one tells the truth.
                may_pass = kept or error.sqlstate in _VICTIM
                if is_last or not may_pass or (until is not None and time.monotonic() >= until):
                    raise self._unavailable(error) from error
            except psycopg.Error as error:
                if error.sqlstate in _UNDEFINED:
                    raise _outdated(error) from error
                raise
            finally:
                _answer_until.reset(before)
        raise AssertionError("not reached")

    def _once(self, statement: str, parameters: Mapping[str, Any]) -> list[Any]:
        connection = self._borrow()
        is_whole = False
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                result = cursor.pgresult
                rows = cursor.fetchall() if result is not None and result.status == ExecStatus.TUPLES_OK else []
            is_whole = True
        except _BROKEN:
            raise
        except psycopg.Error:
            is_whole = True  # the server has answered, if only with an error
            raise
        finally:
            if is_whole and not connection.closed:
                self._give_back(connection)
            else:
                connection.close()
        return rows

    def _borrow(self) -> _Bounded:
        try:
            return self._idle.pop()
        except IndexError:
            url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
            connection = _Bounded.connect(url, autocommit=True, **self._arguments)
            if self._is_direct is None:
                # A pooler tells another process id than the server has. Behind one a statement that was prepared may
                # be looked for on another connection.
                told = connection.execute("SELECT pg_backend_pid()").fetchone()
                self._is_direct = told is not None and told[0] == connection.info.backend_pid
            connection.prepare_threshold = _PREPARED_AFTER if self._is_direct else None
            return connection

    def _give_back(self, connection: _Bounded) -> None:
        if self._pooled and len(self._idle) < 2 * self._pool_size:
            self._idle.append(connection)
        else:
            connection.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a connection for single reads, without the round trips of a transaction.

        Raises:
            DatabaseUnavailableError, SchemaOutdatedError: As ``begin``.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection
        except _LOST as error:
            raise self._unavailable(error) from error

    @contextmanager
    def listen(self, channel: str, url: str | None = None) -> Iterator[Listener]:
        """Listen to a channel on a connection of its own, past any pooler; one is kept for the next listener.

        Args:
            channel: An identifier of ours, always the same for one url.
            url: The direct URL, if ``database_url`` is a pooler's.

        Raises:
            DatabaseUnavailableError: Postgres does not answer, or went away meanwhile.
        """
        self.engine  # noqa: B018  (starts embedded services before the first connection)
        try:
            connection = self._kept_listener() or self._new_listener(channel, url)
            try:
                yield Listener(connection)
            except BaseException:
                connection.close()
                raise
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error
        with self._lock:
            spare, self._listener = self._listener, (os.getpid(), connection)
        if spare is not None and spare[0] == os.getpid():
            spare[1].close()

    def _kept_listener(self) -> psycopg.Connection[Any] | None:
        """Take the connection that the last listener left, if it is ours and still good."""
        with self._lock:
            kept, self._listener = self._listener, None
        if kept is None or kept[0] != os.getpid():
            return None
        try:
            kept[1].execute("SELECT 1")
        except psycopg.OperationalError:
            kept[1].close()
            return None
        return kept[1]

    def _new_listener(self, channel: str, url: str | None) -> psycopg.Connection[Any]:
        target = (make_url(sqlalchemy_url(url)) if url else self.url).set(drivername="postgresql")
        connection = psycopg.connect(
            target.render_as_string(hide_password=False), autocommit=True, connect_timeout=self._connect_timeout_s
        )
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        return connection

    def _unavailable(self, error: Exception) -> DatabaseUnavailableError:
        """Say in one line why Postgres could not be used, without its password."""
        self._is_prepared = False
        cause = getattr(error, "orig", None) or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        shown = self.url.difference_update_query(["password"]).render_as_string(hide_password=True)
        return DatabaseUnavailableError(
            f"Postgres at {shown} does not answer: {reason}",
            hint="start it, correct LOOMQ_DATABASE_URL, or unset it to use the embedded Postgres",
        )

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            if self._engine is not None:
                self._engine.dispose()
            for connection in idle:
                connection.close()
        self._engine = None
        kept, self._listener = self._listener, None
        if kept is not None and kept[0] == os.getpid():
            kept[1].close()


def _translate(context: Any) -> Exception | None:
    cause = context.original_exception
    if isinstance(cause, psycopg.Error) and cause.sqlstate in _UNDEFINED:
        return _outdated(cause)
    return None


def _outdated(cause: psycopg.Error) -> SchemaOutdatedError:
    return SchemaOutdatedError(
        f"the database does not have this version's tables: {str(cause).splitlines()[0]}",
        hint="run: loomq db upgrade",
    )
