"""What to run: how each private server is prepared and started, and what a killed one leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loomq.embedded import binaries
from loomq.embedded.paths import Account, EmbeddedServices, make_home
from loomq.embedded.probes import answers
from loomq.errors import EmbeddedServiceError
from loomq.processes import die_with_parent

if TYPE_CHECKING:
    import psutil

_LEFTOVER_PATIENCE_S = 5.0
_LOG_BYTES = 8 * 1024 * 1024
_POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "log_checkpoints": "off",
    # Parallel queries ask for more shared memory than containers give by default.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
}
_REDIS_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
}


class Server:
    """One kind of server; its two subclasses are all that there are.

    Args:
        services: The project's servers.
        account: Who runs them.
    """

    name: ClassVar[str]
    programs: ClassVar[frozenset[str]]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, services: EmbeddedServices, account: Account) -> None:
        self.services = services
        self.account = account
        self.home = services.home(self.name)
        self.socket = services.socket(self.name)

    def command(self) -> list[str]:
        """Prepare the data if there is none yet, and give the command that serves it."""
        raise NotImplementedError

    def marks(self) -> list[Path]:
        """Name the files by which a running server is known, and which a killed one leaves."""
        return [self.socket]

    def start(self) -> subprocess.Popen[bytes]:
        """Clear what a crash left, and start the server.

        The caller holds the supervisor's lock, so whatever runs in the server's folder is a leftover.

        Raises:
            EmbeddedServiceError: The data cannot be prepared, or the program cannot be run.
        """
        make_home(self.services, self.name, self.account)
        end_leftovers(self.home, self.programs)
        for path in self.marks():
            path.unlink(missing_ok=True)
        log = self.services.log(self.name)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return self.spawn(self.command(), stdin=subprocess.DEVNULL)

    def answers(self) -> bool:
        """Say whether the server takes requests."""
        return answers(self.name, self.socket)

    def failure(self, reason: str) -> EmbeddedServiceError:
        """Say what went wrong, with where to look next."""
        return EmbeddedServiceError(
            f"the private {self.name} in {self.home} did not start: {reason}",
            hint=f"its log is {self.services.log(self.name)}",
        )

    def spawn(self, command: list[str], *, stdin: int) -> subprocess.Popen[bytes]:
        """Run a program as the servers' user, with its output in the server's log and its life tied to ours."""
        foreign = self.account.foreign
        with self.services.log(self.name).open("ab") as log:
            try:
                return subprocess.Popen(  # noqa: S603  (a command of ours)
                    command,
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    cwd=self.home,
                    # Nothing is handed on: PGDATA, PGOPTIONS and the like would change the server.
                    env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.home)},
                    user=self.account.uid if foreign else None,
                    group=self.account.gid if foreign else None,
                    extra_groups=[] if foreign else None,
                    umask=0o077,
                    # Popen changes the user before it calls this; the other way round the kernel would forget it.
                    preexec_fn=die_with_parent(self.stop_signal),  # noqa: PLW1509  (the supervisor has one thread)
                )
            except OSError as error:
                raise self.failure(f"{command[0]} cannot be run: {error.strerror or error}") from None


class RedisServer(Server):
    """Valkey, without persistence: the broker is disposable."""

    name = "redis"
    programs = frozenset({"valkey-server"})
    stop_signal = signal.SIGTERM

    def command(self) -> list[str]:
        """Give the command; there is nothing to prepare."""
        options = {**_REDIS_OPTIONS, "dir": str(self.home), "unixsocket": str(self.socket)}
        program = binaries.redis_server(self.account)
        return [str(program), *(word for key, value in options.items() for word in (f"--{key}", value))]


class PostgresServer(Server):
    """Postgres, with a database and a superuser called ``loomq``."""

    name = "postgres"
    programs = frozenset({"postgres", "initdb"})
    # A fast shutdown: sessions are ended, the data is left clean.
    stop_signal = signal.SIGINT

    @property
    def data(self) -> Path:
        """The cluster's folder; it is there only if it is complete."""
        return self.home / "data"

    def marks(self) -> list[Path]:
        """Name the socket, and both files that keep a process id, which may be somebody else's by now."""
        return [self.socket, self.socket.with_name(f"{self.socket.name}.lock"), self.data / "postmaster.pid"]

    def command(self) -> list[str]:
        """Make the cluster if there is none, and give the command."""
        major = self._major()
        programs = binaries.postgres_bin(major, self.account)
        if major is None:
            self._create(programs)
        options = (word for key, value in _POSTGRES_OPTIONS.items() for word in ("-c", f"{key}={value}"))
        return [str(programs / "postgres"), "-D", str(self.data), "-k", str(self.services.socket_dir), *options]

    def _major(self) -> str | None:
        """Read which version made the cluster; ``None`` if there is no cluster."""
        try:
            return (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if not self.data.is_dir() or not any(self.data.iterdir()):
                return None
        raise EmbeddedServiceError(
            f"{self.data} is damaged: it has files but no PG_VERSION",
            hint=f"restore it from a backup, or give its goals up: rm -rf {self.data}",
        )

    def _create(self, programs: Path) -> None:
        """Make the cluster beside its place and move it there, so that half a cluster is never used."""
        for draft in self.home.glob("new-*"):
            shutil.rmtree(draft, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix="new-", dir=self.home))
        if self.account.foreign:
            os.chown(draft, self.account.uid, self.account.gid)
        cluster = ["-D", str(draft)]
        identity = ["--username=loomq", "--auth=trust"]
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run([str(programs / "initdb"), *cluster, *identity, *locale, "--no-instructions"])
        self._run([str(programs / "postgres"), "--single", *cluster, "postgres"], b"CREATE DATABASE loomq;\n")
        with contextlib.suppress(FileNotFoundError):
            self.data.rmdir()
        draft.rename(self.data)

    def _run(self, command: list[str], text: bytes = b"") -> None:
        process = self.spawn(command, stdin=subprocess.PIPE)
        process.communicate(text)
        if process.returncode:
            raise self.failure(f"{Path(command[0]).name} ended with exit status {process.returncode}")


def end_leftovers(home: Path, programs: frozenset[str]) -> None:
    """End the servers that an earlier supervisor left behind: gently first, then by force.

    Args:
        home: Processes count that work in this folder or below it, even if it has been removed since.
        programs: Their names; a shell that happens to stand there is nobody's leftover.
    """
    import psutil

    for number in (signal.SIGINT, signal.SIGKILL):
        found = _running(home, programs)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        psutil.wait_procs(found, timeout=_LEFTOVER_PATIENCE_S)


def _running(home: Path, programs: frozenset[str]) -> list[psutil.Process]:
    import psutil

    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] in programs
        and Path((process.info["cwd"] or "").removesuffix(" (deleted)")).is_relative_to(home)
    ]
