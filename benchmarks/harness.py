"""Servers, worker nodes and clocks: both systems side by side on the same machine, in a folder that goes away."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from kombu import Connection

from loomq import __version__
from loomq.embedded import client as embedded
from loomq.processes import die_with_parent
from loomq.settings import Settings
from loomq.store import migrate
from loomq.store.engine import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).parent / "project"
SLOTS = 2
_LOOMQ_BROKER = 13  # Redis databases that the tests leave alone: 10 to 15
_PAGE = b"\0" * 8192  # as much as Postgres flushes for a small commit
_STOP_S = 10.0
_PREFORK = ("-P", "prefork", "-c", str(SLOTS))


class Node:
    """A Celery worker node in a process group of its own, which ends with this process.

    Args:
        log: Where it writes to.
        app: What Celery starts, with options for Celery itself.
        pool: Celery's options for its slots.
    """

    def __init__(
        self, log: Path, *app: str, cwd: Path, environment: dict[str, str], pool: Sequence[str] = _PREFORK
    ) -> None:
        self.log = log
        options = [*pool, "-l", "WARNING", "--without-gossip", "--without-mingle"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", *app, "worker", "-n", f"{log.stem}-{uuid4().hex[:8]}@%h", *options],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  (this process has one thread)
            )

    def kill(self) -> None:
        """End the whole node as a machine that loses power does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Wait until it has ended as asked, and kill what has not ended after a while."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(frozen=True)
class Servers:
    """A fresh database and an empty broker for loomq.

    Args:
        given: The settings that lead to them.
        broker_server: The broker's URL without the number of a database.
    """

    folder: Path
    given: dict[str, Any]
    broker_server: str
    is_private: bool

    def redis(self, number: int) -> str:
        """Name a Redis database, and empty it."""
        url = _redis_database(self.broker_server, number)
        _empty(url)
        return url

    def plain_redis(self, number: int) -> str:
        """Name a Redis database as redis-py does, and empty it."""
        url = self.redis(number)
        path, _, rest = url.removeprefix("redis+socket://").partition("?virtual_host=")
        return f"unix://{path}?db={rest}" if url.startswith("redis+socket") else url

    def database(self, name: str, *, driver: bool = True) -> str:
        """Make a database of another system's own, and name it.

        Args:
            driver: Whether the URL names SQLAlchemy's driver.
        """
        server = Database(self.given["database_url"])
        mine = f"{server.url.database}_{name}"
        with plain_connection(server) as admin:
            admin.execute(f"CREATE DATABASE {mine}")
        url = server.url.set(database=mine, drivername="postgresql+psycopg" if driver else "postgresql")
        return url.render_as_string(hide_password=False)

    def slow_down(self, flush_ms: float) -> None:
        """Let each commit of loomq's database wait for so much longer before it flushes."""
        server = Database(self.given["database_url"])
        with plain_connection(server) as admin:
            admin.execute(f"ALTER DATABASE {server.url.database} SET commit_delay = {round(flush_ms * 1000)}")
            admin.execute(f"ALTER DATABASE {server.url.database} SET commit_siblings = 0")

    def pids(self) -> list[int]:
        """Name the processes of private servers."""
        if not self.is_private:
            return []
        services = embedded.services_for(Settings.load(project=PROJECT, data=self.given["data"]))
        return [server["pid"] for server in embedded.status(services)["servers"].values()]


@contextmanager
def open_servers() -> Iterator[Servers]:
    """Set up a fresh database and an empty broker.

    The servers are those of ``LOOMQ_TEST_DATABASE_URL`` and ``LOOMQ_TEST_BROKER_URL``, else private ones.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="loomq-bench-"))
        folder.chmod(0o711)  # as root, private servers run as another user
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        database_url, broker_url = os.environ.get("LOOMQ_TEST_DATABASE_URL"), os.environ.get("LOOMQ_TEST_BROKER_URL")
        is_private = database_url is None
        if database_url is None or broker_url is None:
            private = stack.enter_context(_private_servers(folder))
            database_url, broker_url = database_url or private.database_url, broker_url or private.broker_url
        given = {
            "project": PROJECT,
            "data": folder / "data",
            "database_url": stack.enter_context(_fresh_database(database_url)),
            "broker_url": _redis_database(broker_url, _LOOMQ_BROKER),
        }
        _empty(given["broker_url"])
        yield Servers(folder, given, broker_url, is_private)


def _empty(broker_url: str) -> None:
    with Connection(broker_url) as connection:
        connection.default_channel.client.flushdb()


@contextmanager
def _private_servers(folder: Path) -> Iterator[embedded.EmbeddedServices]:
    services = embedded.services_for(Settings.load(project=PROJECT, data=folder / "data"))
    embedded.ensure(services)
    try:
        yield services
    finally:
        embedded.stop(services)


@contextmanager
def _fresh_database(url: str) -> Iterator[str]:
    """Make a migrated database for as long as the block lasts."""
    server = Database(url)
    name = f"loomq_bench_{uuid4().hex[:12]}"
    with plain_connection(server) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    found = server.url.set(database=name).render_as_string(hide_password=False)
    try:
        migrate.upgrade(Database(found, pooled=False))
        yield found
    finally:
        with plain_connection(server) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def plain_connection(database: Database) -> psycopg.Connection[Any]:
    """Connect past loomq."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=True)


def _redis_database(url: str, number: int) -> str:
    return f"{url}?virtual_host={number}" if url.startswith("redis+socket") else f"{url.rstrip('/')}/{number}"


def loomq_node(
    folder: Path, given: dict[str, Any], *, pool: Sequence[str] = _PREFORK, more: Mapping[str, str] | None = None
) -> Node:
    """Start a loomq node over a project's servers.

    Args:
        more: Variables for it, besides loomq's settings.
    """
    mine = {f"LOOMQ_{key.upper()}": str(value) for key, value in given.items()}
    around = {**environment(), **mine, **(more or {})}
    return Node(folder / "loomq.log", "-A", "loomq", cwd=given["project"], environment=around, pool=pool)


def environment() -> dict[str, str]:
    """Give this process's environment without what would change either system."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("LOOMQ_", "CELERY_"))}


def timed_ms(work: Callable[[], Any]) -> float:
    """Do something once and give its time in milliseconds."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def p95(samples: list[float]) -> float:
    """Give the 95th percentile; of a few samples, the largest."""
    return statistics.quantiles(samples, n=20, method="inclusive")[-1] if len(samples) > 20 else max(samples)


def surroundings(servers: Servers, tries: int = 50) -> dict[str, Any]:
    """Measure what the machine and its servers cost by themselves: medians in milliseconds, and versions."""

    def median_ms(work: Callable[[], Any]) -> float:
        return round(statistics.median(timed_ms(work) for _ in range(tries)), 3)

    url = servers.given["database_url"]
    with plain_connection(Database(url)) as database, Connection(servers.given["broker_url"]) as broker:
        database.execute("CREATE TABLE bench_commits (n integer)")
        client = broker.default_channel.client
        costs = {
            "fsync_ms": _fsync_ms(servers.folder, median_ms) if servers.is_private else None,
            "commit_ms": median_ms(lambda: database.execute("INSERT INTO bench_commits VALUES (1)")),
            "select_ms": median_ms(lambda: database.execute("SELECT 1")),
            "ping_ms": median_ms(client.ping),
        }
        database.execute("DROP TABLE bench_commits")
        return {**costs, "cpus": len(os.sched_getaffinity(0)), "versions": _versions(database, client)}


def _fsync_ms(folder: Path, median_ms: Callable[[Callable[[], Any]], float]) -> float:
    """Time a flush as Postgres makes it at a commit: of a page that has its place on the disk already."""
    sync = getattr(os, "fdatasync", os.fsync)
    with (folder / "flushed").open("wb", buffering=0) as file:
        file.write(_PAGE)
        os.fsync(file.fileno())

        def flush() -> None:
            os.pwrite(file.fileno(), _PAGE, 0)
            sync(file.fileno())

        return median_ms(flush)


def _versions(database: psycopg.Connection[Any], client: Any) -> dict[str, str]:
    server = client.info("server")
    number = database.info.server_version
    return {
        "loomq": __version__,
        **{name: version(name) for name in ("celery", "kombu", "redis", "psycopg")},
        "python": ".".join(map(str, sys.version_info[:3])),
        "postgres": f"{number // 10000}.{number % 10000}",
        "broker": str(server.get("valkey_version") or server.get("redis_version")),
    }
