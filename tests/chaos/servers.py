"""The run's own Postgres, Redis and relay, which can be killed, wiped, cut back and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

from loomq.embedded.paths import EmbeddedServices, make_data_dir, make_socket_dir, server_account
from loomq.embedded.servers import PostgresServer, RedisServer, Server
from loomq.processes import die_with_parent
from loomq.testing import wait_until

_CUT_BACK_S = 1.0


class AofRedis(RedisServer):
    """Valkey that writes down each second what it holds."""

    @property
    def aof(self) -> Path:
        """The folder of the append-only files."""
        return self.home / "appendonlydir"

    @property
    def tail(self) -> Path:
        """The file that grows."""
        return next(self.aof.glob("*.incr.aof"))

    def command(self) -> list[str]:
        """Give the command, with the append-only file and without its being rewritten."""
        return [
            *super().command(),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"),
        ]


class Running:
    """One server and its process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        return self.process is not None and self.process.poll() is None and self.server.answers()

    def start(self) -> None:
        """Start it; it answers a little later."""
        self.process = self.server.start()

    def kill(self) -> None:
        """End it with all its processes as a machine that loses power does."""
        if self.process is None:
            return
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            for each in [family, *family.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.wait()
        self.process = None


class Servers:
    """The servers of one run.

    Args:
        folder: The run's folder, which the servers' user may enter.
        redis: False if the broker is another one.
    """

    def __init__(self, folder: Path, *, redis: bool = True) -> None:
        self.folder = folder
        self.services = EmbeddedServices(folder / "data", Path("/tmp") / f"loomq-{os.geteuid()}" / folder.name)
        account = server_account()
        self.redis_server = AofRedis(self.services, account)
        self.postgres = Running(PostgresServer(self.services, account))
        self.redis = Running(self.redis_server)
        self._with_redis = redis
        self._relay: subprocess.Popen[bytes] | None = None
        self._sizes: deque[tuple[float, int]] = deque(maxlen=100)

    @property
    def database_url(self) -> str:
        """Postgres behind the relay."""
        return f"postgresql+psycopg://loomq@/loomq?host={self.folder / 'relay'}"

    @property
    def broker_url(self) -> str:
        """Redis."""
        return self.services.broker_url

    def start(self) -> None:
        """Start all of them and wait until they answer."""
        make_data_dir(self.services)
        make_socket_dir(self.services)
        self.postgres.start()
        if self._with_redis:
            self.redis.start()
            wait_until(lambda: self.redis.is_up, "Redis")
        wait_until(lambda: self.postgres.is_up, "Postgres")
        (self.folder / "relay").mkdir()
        here, there = self.folder / "relay" / ".s.PGSQL.5432", self.services.socket("postgres")
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.proxy", here, there, self.folder / "swallowed"],
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  (one thread)
        )
        wait_until(here.exists, "the relay")

    def stop(self) -> None:
        """End all of them and remove their sockets."""
        for running in (self.redis, self.postgres):
            running.kill()
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        shutil.rmtree(self.services.socket_dir, ignore_errors=True)

    def connect(self) -> psycopg.Connection:
        """Connect to Postgres past the relay."""
        return psycopg.connect(
            f"host={self.services.socket_dir} user=loomq dbname=loomq", autocommit=True, connect_timeout=2
        )

    def swallow_answers(self, count: int) -> None:
        """Let the relay swallow the next answers to writes."""
        assert self._relay is not None
        for _ in range(count):
            self._relay.send_signal(signal.SIGUSR1)
            time.sleep(0.01)  # signals of one number do not queue up

    def swallowed(self) -> int:
        """Count the answers that were swallowed."""
        log = self.folder / "swallowed"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def measure_aof(self) -> None:
        """Take note of the append-only file's length; it is written whole commands at a time."""
        with suppress(OSError, StopIteration):
            self._sizes.append((time.monotonic(), self.redis_server.tail.stat().st_size))

    def wipe_redis(self) -> None:
        """Remove all that a stopped Redis would come back with."""
        shutil.rmtree(self.redis_server.aof, ignore_errors=True)
        self._sizes.clear()

    def cut_aof(self) -> int:
        """Cut a stopped Redis' file back to what it was a second ago; gives the bytes that are lost."""
        tail, now = self.redis_server.tail, time.monotonic()
        size = tail.stat().st_size
        kept = next((then for at, then in reversed(self._sizes) if now - at >= _CUT_BACK_S and then < size), size)
        os.truncate(tail, kept)
        self._sizes.clear()
        return size - kept


class Clock:
    """Things to do later, done by whoever calls ``tick``."""

    def __init__(self) -> None:
        self._later: list[tuple[float, Callable[[], None]]] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._later

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Do something so much later."""
        self._later.append((time.monotonic() + seconds, work))

    def when(self, condition: Callable[[], bool], work: Callable[[], None]) -> None:
        """Do something as soon as a condition holds."""

        def look() -> None:
            if condition():
                work()
            else:
                self.after(0.02, look)

        self.after(0, look)

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [work for at, work in self._later if at <= now]
        self._later = [item for item in self._later if item[0] > now]
        for work in due:
            work()
