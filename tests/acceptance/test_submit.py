"""Handing in goals while the services are away: accepted or refused, told soon, and never half."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from loomq.embedded import client as embedded
from loomq.errors import SubmitUnavailableError
from loomq.services.submit import submit_task
from loomq.settings import Settings
from loomq.store import migrate
from loomq.store.engine import Database


class Servers:
    """Servers of this module's own, which may be stopped."""

    def __init__(self, folder: Path) -> None:
        self._services = embedded.services_for(Settings(project=folder, data=folder / "data"))
        embedded.ensure(self._services)
        self.database_url, self.broker_url = self._services.database_url, self._services.broker_url

    @contextmanager
    def frozen(self, program: str):
        """Stop all processes of a server for as long as the block lasts; their sockets stay open."""
        stopped = [process for process in psutil.process_iter(["name", "cwd"]) if self._is(process, program)]
        assert stopped
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                process.send_signal(signal.SIGCONT)

    def _is(self, process: psutil.Process, program: str) -> bool:
        here = Path(process.info["cwd"] or "/").is_relative_to(self._services.data_dir)
        return here and process.info["name"].startswith(program)

    def stop(self) -> None:
        embedded.stop(self._services)


@pytest.fixture(scope="module")
def servers():
    folder = Path(tempfile.mkdtemp(prefix="loomq-servers-"))
    folder.chmod(0o711)
    found = Servers(folder)
    migrate.upgrade(Database(found.database_url, pooled=False))
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def loom(servers, project):
    project.settings_given |= {"database_url": servers.database_url, "broker_url": servers.broker_url}
    project.worker("echo")
    found = project.loom()
    yield found
    found.close()


def _timed(work):
    started = time.monotonic()
    found = work()
    return found, time.monotonic() - started


def _refusal(loom):
    with pytest.raises(SubmitUnavailableError) as caught:
        submit_task("echo", {}, loom=loom)
    return caught.value


def test_with_a_broker_that_does_not_answer_goals_are_accepted_at_once(servers, loom):
    submit_task("echo", {}, loom=loom)
    with servers.frozen("valkey"):
        taken = [_timed(lambda n=n: submit_task("echo", {"n": n}, loom=loom)) for n in range(20)]
    assert max(spent for _, spent in taken) < 0.5
    assert loom.database.call("SELECT count(*) FROM goals WHERE state = 'open'", {})[0][0] == 21
    assert {stage.state for handle, _ in taken for stage in handle.stages()} == {"ready"}


@pytest.mark.parametrize("is_known", [True, False], ids=["open connection", "new connection"])
def test_with_a_database_that_does_not_answer_a_submit_is_refused_within_five_seconds(servers, loom, is_known):
    if is_known:
        submit_task("echo", {}, loom=loom)
    with servers.frozen("postgres"):
        error, spent = _timed(lambda: _refusal(loom))
    assert spent < 5
    assert "was not accepted" in str(error)
    assert error.retryable
    assert submit_task("echo", {}, loom=loom).goal_id


def test_fifty_who_submit_at_once_to_a_database_that_does_not_answer_are_all_refused_in_time(servers, loom):
    submit_task("echo", {}, loom=loom)
    with servers.frozen("postgres"), ThreadPoolExecutor(50) as pool:
        waits = list(pool.map(lambda _: _timed(lambda: _refusal(loom))[1], range(50)))
    assert max(waits) < 5


def test_one_key_from_fifty_threads_is_one_goal(loom):
    with ThreadPoolExecutor(50) as pool:
        handles = list(pool.map(lambda _: submit_task("echo", {}, idempotency_key="once", loom=loom), range(50)))
    (goal_id,) = {handle.goal_id for handle in handles}
    rows = loom.database.call("SELECT id FROM goals WHERE idempotency_key = 'once'", {})
    assert [row[0] for row in rows] == [goal_id]
