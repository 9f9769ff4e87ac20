"""The process that keeps a project's private servers: ``python -m loomq.embedded.supervisor``.

It is light (no Celery, no database library), detached from whoever started it, and the only one of its
project: it holds ``supervisor.lock``. A client that holds ``clients.lock`` keeps the servers; the supervisor
stops them under that same lock, taken exclusively, so no client can come in between.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomq.embedded.locks import is_file, try_lock
from loomq.embedded.paths import SERVER_NAMES, EmbeddedServices, server_account
from loomq.embedded.servers import PostgresServer, RedisServer, Server
from loomq.errors import EmbeddedServiceError

if TYPE_CHECKING:
    from types import FrameType

_BUSY_TICK_S = 0.02
_IDLE_TICK_S = 0.2
_MAX_DEATHS = 4
_DEATHS_WITHIN_S = 60.0
_STOP_PATIENCE_S = 30.0


class _Kept:
    """A server that was asked for, and its process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.deaths: list[float] = []
        self.ready = False
        self.process = server.start()

    def look(self) -> None:
        """Notice that the server has become ready, or start it again if it has died or lost its socket.

        Raises:
            EmbeddedServiceError: It dies too often.
        """
        lost = self.ready and not self.server.socket.exists()
        if self.process.poll() is None and not lost:
            self.ready = self.ready or self.server.answers()
            return
        self.stop()
        now = time.monotonic()
        self.deaths = [*(death for death in self.deaths if now - death < _DEATHS_WITHIN_S), now]
        if len(self.deaths) >= _MAX_DEATHS:
            raise self.server.failure(f"it ended {len(self.deaths)} times within a minute, {self._last_end()}")
        _say(f"{self.server.name} ended {self._last_end()}: starting it again")
        self.ready = False
        self.process = self.server.start()

    def stop(self) -> None:
        """End the server cleanly, by force if that takes too long."""
        for number in (self.server.stop_signal, signal.SIGQUIT, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(number)
            try:
                self.process.wait(_STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                _say(f"{self.server.name} does not end on {number.name}")

    def _last_end(self) -> str:
        return f"last with exit status {self.process.returncode}"


class Supervisor:
    """Keeps the servers that clients ask for until no client is left.

    Args:
        services: The project's servers.
        lock: The descriptor of ``supervisor.lock``, locked.
    """

    def __init__(self, services: EmbeddedServices, lock: int) -> None:
        self.services = services
        self.lock = lock
        self.kept: dict[str, _Kept] = {}
        self.told_to_stop = False
        self._busy_with = "supervisor"
        self._idle_since: float | None = None
        self._said: dict[str, Any] = {}

    def run(self) -> int:
        """Serve until the last client has gone, or a server cannot be kept; give the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        clients: int | None = None
        error: EmbeddedServiceError | None = None
        try:
            account = server_account()
            servers: list[Server] = [kind(self.services, account) for kind in (RedisServer, PostgresServer)]
            while clients is None and not self.told_to_stop and self._in_charge():
                self._tick(servers)
                clients = self._alone()
        except EmbeddedServiceError as problem:
            error = problem
        except Exception as problem:  # noqa: BLE001  (whatever it is, the waiting clients must hear of it)
            error = EmbeddedServiceError(
                f"the supervisor of {self.services.data_dir} failed: {type(problem).__name__}: {problem}",
                hint=f"its log is {self.services.log('supervisor')}",
            )
        self._stop(error)
        return 1 if error else 0

    def _in_charge(self) -> bool:
        """Say whether the data folder is still ours; it may have been removed under us, and even made anew."""
        return is_file(self.lock, self.services.supervisor_lock)

    def _tick(self, servers: list[Server]) -> None:
        for server in servers:
            self._busy_with = server.name
            if server.name in self.kept:
                self.kept[server.name].look()
            elif self.services.wanted(server.name).exists():
                self._report("running")
                self.kept[server.name] = _Kept(server)
        self._busy_with = "supervisor"
        self._report("running")
        settled = all(kept.ready for kept in self.kept.values())
        time.sleep(_IDLE_TICK_S if settled and self.kept else _BUSY_TICK_S)

    def _alone(self) -> int | None:
        """Take the clients' lock if there has been no client for the linger; until then only try it."""
        lock = try_lock(self.services.clients_lock, shared=False)
        if lock is None:
            self._idle_since = None
            return None
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since >= self.services.linger_s:
            return lock
        os.close(lock)
        return None

    def _stop(self, error: EmbeddedServiceError | None) -> None:
        """Stop what runs; the locks go with the process."""
        if self._in_charge():
            # Before anything ends: a client that waits for the next supervisor asks again.
            for name in SERVER_NAMES:
                self.services.wanted(name).unlink(missing_ok=True)
        self._report("stopping")
        for kept in self.kept.values():
            kept.stop()
        if error:
            _say(str(error))
        self.kept.clear()
        if self._in_charge():
            with contextlib.suppress(OSError):
                self.services.socket_dir.rmdir()
        self._report("failed" if error else "stopped", error)

    def _report(self, state: str, error: EmbeddedServiceError | None = None) -> None:
        servers = {
            name: {"pid": kept.process.pid, "ready": kept.ready, "restarts": len(kept.deaths)}
            for name, kept in self.kept.items()
        }
        said: dict[str, Any] = {"state": state, "pid": os.getpid(), "servers": servers, "error": None}
        if error:
            said["error"] = {**error.to_json(), "log": self._busy_with}
        if said == self._said or not self._in_charge():
            return
        draft = self.services.status_file.with_suffix(".new")
        try:
            draft.write_text(json.dumps({**said, "at": time.time()}))
            draft.replace(self.services.status_file)
        except OSError as problem:
            # A full disk must not keep us from stopping the servers; the next tick tries again.
            _say(f"the status cannot be written: {problem}")
        else:
            self._said = said

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (what signal calls it with)
        self.told_to_stop = True


def main(arguments: list[str] | None = None) -> int:
    """Detach from the client that starts us, and supervise."""
    parser = argparse.ArgumentParser(prog="loomq.embedded.supervisor", description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("socket_dir", type=Path)
    parser.add_argument("--linger", type=float, default=3.0, help="seconds to stay without a client")
    parser.add_argument("--lock-fd", type=int, required=True, help="the locked supervisor.lock, from the client")
    given = parser.parse_args(arguments)
    # The lock came open and locked, so there was no moment without it; the servers shall not have it.
    os.set_inheritable(given.lock_fd, False)
    if os.fork():
        os._exit(0)
    os.chdir("/")
    return Supervisor(EmbeddedServices(given.data_dir, given.socket_dir, given.linger), given.lock_fd).run()


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
