"""What every test may lean on: real servers, a database of its own, a project, and real worker processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import psycopg
import pytest

from loomq.embedded import client as embedded
from loomq.loom import Loom
from loomq.services import inspect
from loomq.settings import Settings
from loomq.store import migrate
from loomq.store.engine import Database, sqlalchemy_url
from loomq.testing import wait_until

# How long an example takes is the machine's business, and nobody's failure.
hypothesis.settings.register_profile("loomq", deadline=None)
hypothesis.settings.load_profile("loomq")


def pytest_configure(config: pytest.Config) -> None:
    """Name the run, once for all of pytest-xdist's processes."""
    if not hasattr(config, "workerinput"):
        os.environ["LOOMQ_TEST_RUN"] = uuid4().hex[:8]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run's servers and remove its traces, when every process of the run is done."""
    if not hasattr(config, "workerinput") and _run_dir().exists():
        if given := os.environ.get("LOOMQ_TEST_DATABASE_URL"):
            with _admin(given) as admin:
                admin.execute(f"DROP DATABASE IF EXISTS loomq_template_{os.environ['LOOMQ_TEST_RUN']} WITH (FORCE)")
        embedded.stop(_services())
        shutil.rmtree(_run_dir(), ignore_errors=True)


def _run_dir() -> Path:
    """A folder for the whole run, short and open to the servers' user."""
    return Path(tempfile.gettempdir()) / f"loomq-test-{os.getuid()}-{os.environ['LOOMQ_TEST_RUN']}"


def _services() -> embedded.EmbeddedServices:
    return embedded.services_for(Settings(project=_run_dir(), data=_run_dir() / "data"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The run's folder."""
    _run_dir().mkdir(mode=0o711, exist_ok=True)
    _run_dir().chmod(0o711)
    return _run_dir()


@pytest.fixture(scope="session")
def server_urls(shared_dir: Path) -> tuple[str, str]:
    """Postgres and Redis: those that the environment names, else private embedded ones of this run."""
    database, broker = os.environ.get("LOOMQ_TEST_DATABASE_URL"), os.environ.get("LOOMQ_TEST_BROKER_URL")
    if not (database and broker):
        embedded.ensure(_services())
    return database or _services().database_url, broker or _services().broker_url


def _admin(url: str) -> psycopg.Connection[Any]:
    plain = Database(url).url.set(drivername="postgresql")
    return psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True)


@pytest.fixture(scope="session")
def template(server_urls: tuple[str, str], shared_dir: Path) -> str:
    """A migrated database that each test's own is copied from; made once a run."""
    name = f"loomq_template_{shared_dir.name.rpartition('-')[2]}"
    with (shared_dir / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _admin(server_urls[0]) as admin:
            if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                admin.execute(f"CREATE DATABASE {name}")
                database = Database(_with_database(server_urls[0], name), pooled=False)
                migrate.upgrade(database)
    return name


def _with_database(url: str, name: str) -> str:
    return Database(sqlalchemy_url(url)).url.set(database=name).render_as_string(hide_password=False)


@contextmanager
def fresh_database(url: str, template: str) -> Iterator[str]:
    """Copy the template for as long as the block lasts."""
    name = f"loomq_test_{uuid4().hex[:12]}"
    with _admin(url) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_database(url, name)
    with _admin(url) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(server_urls: tuple[str, str], template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with fresh_database(server_urls[0], template) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same, connected."""
    found = Database(database_url)
    yield found
    found.close()


def broker_database(url: str, first: int) -> str:
    """Name a Redis database of this process's own: ``first``, ``first + 1``, … over pytest-xdist's processes."""
    number = first + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    return f"{url}?virtual_host={number}" if url.startswith("redis+socket") else f"{url.rstrip('/')}/{number}"


@pytest.fixture
def broker_url(server_urls: tuple[str, str]) -> str:
    """A Redis database of this process's own."""
    return broker_database(server_urls[1], 4)


class Project:
    """A project folder of a test: YAML, a Python package ``mine``, and the environment of its processes."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.folder = folder
        self.settings_given: dict[str, Any] = {
            "project": folder,
            "database_url": database_url,
            "broker_url": broker_url,
            "import_allow": "mine",
            "lease_seconds": 3,
            "heartbeat_seconds": 0.2,
            "sweep_seconds": 0.2,
            "grace_seconds": 1,
            "data": folder / "data",
        }
        self.env: dict[str, str] = {}
        for name in ("workers", "pipelines", "mine"):
            (folder / name).mkdir()
        (folder / "mine" / "__init__.py").touch()
        probe = self.loom()
        if probe.app.is_redis:
            probe.app.broker.run(lambda producer: producer.channel.client.flushdb())
        probe.close()

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())
        return file

    def worker(self, name: str, code: str = "", **keys: Any) -> None:
        """Write a processor worker; ``code`` is the body of its ``process_sync(self, payload, config)``."""
        lines = [f"name: {name}", "worker_kind: processor", f"processing_backend: mine.{name}.Backend"]
        self.write(
            f"workers/{name}.yaml", "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"
        )
        body = textwrap.indent(textwrap.dedent(code or 'return {"output": {"got": payload}}').strip(), " " * 8)
        self.write(
            f"mine/{name}.py",
            "import os, signal, threading, time\nfrom pathlib import Path\n"
            "from loomq.errors import BackendError, TransientBackendError\n"
            "from loomq.workers.base import SyncProcessingBackend\n\n\n"
            "class Backend(SyncProcessingBackend):\n    def process_sync(self, payload, config):\n" + body + "\n",
        )

    def pipeline(self, name: str, stages: str, extra: str = "") -> None:
        """Write a pipeline; ``stages`` is YAML, a stage a line."""
        self.write(
            f"pipelines/{name}.yaml",
            f"name: {name}\n{extra}pipeline_stages:\n" + textwrap.dedent(stages).strip("\n") + "\n",
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process of this project."""
        given = {f"LOOMQ_{key.upper()}": str(value) for key, value in self.settings_given.items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LOOMQ_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # a process a test: compiling everything anew each time is slow
        return {**kept, **given, **self.env, "PYTHONUNBUFFERED": "1"}

    def loom(self, **more: Any) -> Loom:
        """Wire this test process to the project."""
        return Loom(Settings.load(**{**self.settings_given, **more}))


@pytest.fixture
def project(tmp_path: Path, database_url: str, broker_url: str) -> Project:
    """A project with an empty database and an empty broker."""
    return Project(tmp_path, database_url, broker_url)


@pytest.fixture
def loom(project: Project) -> Iterator[Loom]:
    """The project's Loom in this process; write the project's files before first using its catalog."""
    found = project.loom()
    yield found
    found.close()


class Node:
    """A real Celery worker node of a project."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.log = project.folder / f"worker-{uuid4().hex[:6]}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "loomq",
                    "worker",
                    "-n",
                    f"{uuid4().hex[:8]}@%h",
                    "-l",
                    "INFO",
                    "--without-gossip",
                    "--without-mingle",
                    *arguments,
                ],
                cwd=project.folder,
                env=project.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The parent process."""
        return self.process.pid

    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End the whole node as a machine that loses power does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def nodes_of(project: Project) -> Iterator[Callable[..., Node]]:
    """Start worker nodes that live as long as the block; each is consuming when it is handed out."""
    nodes: list[Node] = []
    watcher = project.loom()

    def start(*arguments: str, wait: bool = True) -> Node:
        node = Node(project, *(arguments or ("-c", "2")))
        nodes.append(node)
        if wait:
            wait_until(
                lambda: (
                    node.process.poll() is not None
                    or (" ready." in node.text() and any(live.pid == node.pid for live in inspect.live_nodes(watcher)))
                ),
                "the worker node",
            )
            assert node.process.poll() is None, node.text()
        return node

    try:
        yield start
    finally:
        for node in nodes:
            node.kill()
        watcher.close()


@pytest.fixture
def start_node(project: Project) -> Iterator[Callable[..., Node]]:
    """Start worker nodes that live as long as the test."""
    with nodes_of(project) as start:
        yield start


class Shop:
    """A project with one running node, for a module of tests that only hand in goals."""

    def __init__(self, project: Project, loom: Loom, node: Node) -> None:
        self.project = project
        self.loom = loom
        self.node = node


@pytest.fixture(scope="module")
def shop(
    request: pytest.FixtureRequest,
    server_urls: tuple[str, str],
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """The module's project, written by its ``stock(project)``, with a node started with its ``NODE`` arguments."""
    with fresh_database(server_urls[0], template) as url:
        project = Project(tmp_path_factory.mktemp("shop"), url, broker_database(server_urls[1], 8))
        request.module.stock(project)
        loom = project.loom()
        with nodes_of(project) as start:
            yield Shop(project, loom, start(*request.module.NODE))
        loom.close()
