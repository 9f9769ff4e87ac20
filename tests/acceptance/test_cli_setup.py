"""The command line when services are missing, not set up, or its own: status, db, dev, worker, embedded services."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import psutil
import psycopg
import pytest

from loomq.services import inspect
from loomq.store import migrate
from loomq.testing import wait_until

COMMANDS = ["run echo", "submit echo", "status", "show 01", "list", "dev", "worker", "db upgrade", "db current"]
NEEDING_THE_BROKER = ["run echo", "status", "dev", "worker"]


@pytest.fixture
def shop(project):
    """A project with one worker."""
    project.worker("echo")
    return project


@pytest.mark.timeout(30)
@pytest.mark.parametrize("command", COMMANDS)
def test_with_postgres_down_every_command_says_so_with_the_fix(shop, loomq, closed_port, command):
    shop.settings_given["database_url"] = f"postgresql://u:secret@127.0.0.1:{closed_port}/d"
    _, err = loomq(*command.split(), code=3)
    assert f"Postgres at postgresql://u:***@127.0.0.1:{closed_port}/d does not answer: connection refused" in err
    assert "LOOMQ_DATABASE_URL" in err
    if command.startswith("submit"):
        _, err = loomq(*command.split(), "--json", code=3)
        assert json.loads(err)["error"]["type"] == "SubmitUnavailableError"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("command", NEEDING_THE_BROKER)
def test_with_redis_down_what_needs_it_says_so_and_writes_nothing_down(shop, loom, loomq, closed_port, command):
    shop.settings_given["broker_url"] = f"redis://127.0.0.1:{closed_port}/0"
    _, err = loomq(*command.split(), "--json", code=3)
    error = json.loads(err)["error"]
    assert error["type"] == "BrokerUnavailableError"
    assert "LOOMQ_BROKER_URL" in error["hint"]
    assert inspect.listed(loom) == []


def test_saying_that_a_service_is_down_takes_less_than_two_seconds(shop, loomq, closed_port):
    shop.settings_given["broker_url"] = f"redis://127.0.0.1:{closed_port}/0"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    loomq.finish(loomq.start("run", "echo"), code=3)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, since the machine may have other things to do; nothing in it waits.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_with_redis_down_submit_accepts_all_the_same(shop, loom, loomq, closed_port):
    shop.settings_given["broker_url"] = f"redis://127.0.0.1:{closed_port}/0"
    out, err = loomq("submit", "echo")
    assert inspect.status(loom, inspect.find(loom, out.strip())) == "pending"
    assert "the broker does not answer; the goal is kept" in err


def test_an_empty_database_is_told_and_upgraded(shop, loomq, database_url):
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE")
        admin.execute("CREATE SCHEMA public")
    for command in ("run echo", "submit echo", "list", "status", "dev", "worker"):
        _, err = loomq(*command.split(), code=3)
        assert "run: loomq db upgrade" in err
    current = json.loads(loomq("db", "current", "--json")[0])
    assert current == {"schema_version": 1, "revision": None, "head": migrate.HEAD, "is_current": False}

    upgraded = json.loads(loomq("db", "upgrade", "--json")[0])
    assert upgraded == {"schema_version": 1, "before": None, "revision": migrate.HEAD, "changed": True}
    assert loomq("db", "upgrade") == ("", f"already at revision {migrate.HEAD}\n")
    assert loomq("db", "current") == (f"{migrate.HEAD}\n", "")
    loomq("submit", "echo")


def test_a_database_that_a_newer_version_has_migrated_is_worked_with_and_never_changed(shop, loomq, database_url):
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("UPDATE alembic_version SET version_num = '9999'")
    out, err = loomq("db", "current")
    assert out == "9999\n"
    assert f"a newer loomq has migrated it; this version knows none after {migrate.HEAD}" in err
    assert "at revision 9999" in loomq("db", "upgrade", code=3)[1]
    checks = {one["name"]: one for one in json.loads(loomq("doctor", "--json")[0])["checks"]}
    assert (checks["schema"]["status"], checks["schema"]["fix"]) == ("warn", "upgrade loomq")
    loomq("submit", "echo")
    assert json.loads(loomq("status", "--json")[0])["open_goals"] == 1


def test_broken_yaml_is_told_before_anything_is_started(shop, loomq):
    shop.write("workers/bad.yaml", "name: bad\nworker_knd: processor\n")
    for command in ("run echo", "submit echo", "dev", "worker"):
        _, err = loomq(*command.split(), code=2)
        assert "loomq validate" in err
    out, _ = loomq("validate", code=2)
    assert 'did you mean "worker_kind"?' in out


def test_status_shows_services_nodes_and_open_goals(shop, loomq, start_node):
    loomq("submit", "echo")
    out, _ = loomq("status")
    assert "no live worker node" in out
    assert "open     1 goal\n" in out
    node = start_node("-c", "3", "-Q", "other.local")
    found = json.loads(loomq("status", "--json")[0])
    assert (found["ready"], found["open_goals"], found["database"]["revision"]) == (True, 1, migrate.HEAD)
    assert [(live["pid"], live["slots"], live["queues"]) for live in found["nodes"]] == [(node.pid, 3, ["other.local"])]


def test_worker_becomes_celerys_own_worker(shop, loom, loomq):
    process = loomq.start("worker", "-Q", "echo.local", "-c", "1", "--", "-l", "WARNING")
    wait_until(lambda: [node.pid for node in inspect.live_nodes(loom)] == [process.pid], "the node", timeout_s=60)
    loomq("submit", "echo", "--wait", "--timeout", "30")
    process.terminate()
    _, err = loomq.finish(process)
    assert "received" not in err  # the log level went through


def test_dev_runs_everything_until_it_is_told_to_end(shop, loomq):
    process = loomq.start("dev", "-c", "1", "--json")
    told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
    assert (told["project"], told["names"]) == (str(shop.folder), ["echo"])
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"worker", "beat"} <= {word for child in family for word in child.cmdline()}
    loomq("submit", "echo", "--wait", "--timeout", "30")
    process.send_signal(signal.SIGTERM)
    out, err = loomq.finish(process)
    assert out == ""
    assert "Warm shutdown" in err
    assert "stopping: up to 10 s for what runs" in err
    assert loomq.leftovers() == []


def test_dev_ends_with_3_when_a_child_dies(shop, loomq):
    process = loomq.start("dev", "-c", "1", "--json")
    assert "}\n" in iter(process.stdout.readline, "")
    beat = next(child for child in psutil.Process(process.pid).children() if "beat" in child.cmdline())
    beat.kill()
    _, err = loomq.finish(process, code=3)
    assert json.loads(err.splitlines()[-1])["error"]["message"] == "the beat ended with -9"
    assert loomq.leftovers() == []


def test_with_nothing_configured_private_services_start_and_end_by_themselves(shop, loomq, shared_dir):
    data = shared_dir / f"cli-{shop.folder.parent.name[-6:]}"
    for name in ("database_url", "broker_url"):
        del shop.settings_given[name]
    shop.settings_given |= {"data": data, "embedded_linger_seconds": 0.5}
    assert json.loads(loomq("status", "--json")[0])["database"]["state"] == "stopped"

    out, err = loomq.finish(loomq.start("run", "echo", "-i", "x=1", "--json"))

    assert json.loads(out)["result"] == {"got": {"x": 1}}
    assert "starting the private Postgres and Redis" in err
    goals = json.loads(loomq.finish(loomq.start("list", "--json"))[0])["goals"]
    assert [goal["status"] for goal in goals] == ["completed"]
    wait_until(lambda: not processes_of(data), "the end of the servers")


def processes_of(data: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(data) in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
