"""Client processes of private servers, and ways to look at what runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from loomq.embedded.client import EmbeddedServices, services_for, status, stop
from loomq.settings import Settings

LINGER_S = 0.5

# Reports its services, keeps them until its input ends; with "fork" only a forked child does.
CLIENT = """
import json, os, sys
from loomq.embedded.client import ensure, services_for
from loomq.errors import LoomqError
from loomq.settings import Settings
services = services_for(Settings.load())
try:
    ensure(services, timeout_s=50)
except LoomqError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)
if "fork" in sys.argv and os.fork():
    os._exit(0)
urls = {"database_url": services.database_url, "redis_url": services.redis_url, "data_dir": str(services.data_dir)}
print(json.dumps({**urls, "pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


class Client:
    """A process that uses the servers."""

    def __init__(self, environment: dict[str, str], *arguments: str, python: str = sys.executable, **identity):
        self.process = subprocess.Popen(
            [python, "-c", CLIENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
            **identity,
        )
        self._said: dict[str, str] | None = None

    def said(self) -> dict[str, str]:
        if self._said is None:
            self._said = json.loads(self.process.stdout.readline())
        return self._said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Project:
    """A project with private servers, and its clients."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.services = services_for(
            Settings(project=folder, data=folder / "data", embedded_linger_seconds=LINGER_S),
        )
        self.clients: list[Client] = []

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LOOMQ_PROJECT": str(self.folder),
            "LOOMQ_DATA": str(self.services.data_dir),
            "LOOMQ_EMBEDDED_LINGER_SECONDS": str(LINGER_S),
        }

    def client(self, *arguments: str) -> Client:
        client = Client(self.environment(), *arguments)
        self.clients.append(client)
        return client

    def supervisors(self) -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if "loomq.embedded.supervisor" in (process.info["cmdline"] or []) and self._names_us(process)
        ]

    def servers(self) -> list[psutil.Process]:
        """The main processes only: Postgres has a handful of children that work in the same folder."""
        return [process for process in self.processes() if process.parent() not in self.processes()]

    def processes(self) -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cwd"])
            if Path(process.info["cwd"] or "/").is_relative_to(self.services.data_dir)
        ]

    def kill_supervisor(self) -> None:
        os.kill(status(self.services)["pid"], signal.SIGKILL)
        wait_until(lambda: not self.supervisors(), "the supervisor is gone")

    def _names_us(self, process: psutil.Process) -> bool:
        return str(self.services.data_dir) in process.info["cmdline"] and process.info["status"] != psutil.STATUS_ZOMBIE


def wait_until(condition, what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def check_stays(condition, what: str) -> None:
    """Look for as long as a supervisor that counts no client would need to stop, and then some."""
    deadline = time.monotonic() + LINGER_S + 1
    while time.monotonic() < deadline:
        assert condition(), f"no longer: {what}"
        time.sleep(0.05)


def end(services: EmbeddedServices, clients: list[Client]) -> None:
    for client in clients:
        if client.process.poll() is None:
            client.kill()
        client.process.stdin.close()
        client.process.stdout.close()
    stop(services)


@pytest.fixture
def shared_folder():
    """A folder that every user may enter, which pytest's own are not; the servers of root run as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="loomq-test-", dir="/tmp")).resolve()
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def project(shared_folder):
    made = Project(shared_folder)
    yield made
    end(made.services, made.clients)


@pytest.fixture
def until():
    return wait_until


@pytest.fixture
def stays():
    return check_stays


@pytest.fixture
def client_type():
    return Client
