"""The migrated schema is the one that the code believes in, however often and by how many it is migrated."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rows import at_once
from sqlalchemy import text

from loomq.errors import DatabaseUnavailableError, SchemaOutdatedError
from loomq.store import goals, llm_tables, migrate, nodes, schedule_tables
from loomq.store.engine import Database

metadata = llm_tables.metadata  # all tables: those of ``tables`` too
assert schedule_tables.metadata is metadata


@pytest.fixture
def empty(database_url):
    """A database that nobody has migrated, next to the test's own."""
    url = Database(database_url).url
    name = f"{url.database}_empty"
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        found = Database(url.set(database=name).render_as_string(hide_password=False))
        yield found
        found.close()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _differences(connection):
    """Compare the database with the tables of the code; default partitions mirror what they are part of."""
    options = {
        "include_name": lambda name, kind, parents: (
            kind != "table" or not (name.endswith("_default") or name == "alembic_version")
        ),
    }
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def test_a_migrated_database_has_the_tables_that_the_code_believes_in(database):
    with database.begin() as connection:
        assert _differences(connection) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE stages DROP COLUMN reason",
        "ALTER TABLE nodes ALTER COLUMN version DROP NOT NULL",
        "ALTER TABLE goals ALTER COLUMN leaves_left TYPE bigint",
        "DROP INDEX stages_ready",
        "CREATE TABLE more (id integer)",
    ],
)
def test_a_table_that_differs_would_be_noticed(database, change):
    with database.begin() as connection:
        connection.execute(text(change))
        assert _differences(connection)


def test_every_partitioned_table_has_a_default_partition(database):
    rows = database.call(
        "SELECT relname FROM pg_partitioned_table JOIN pg_class c ON c.oid = partrelid WHERE partdefid = 0", {}
    )
    assert rows == []


def test_the_head_that_the_code_names_is_the_newest_revision():
    script = ScriptDirectory.from_config(migrate.config())
    assert script.get_heads() == [migrate.HEAD]


def test_an_empty_database_is_migrated_once_however_often_that_is_asked(empty):
    assert migrate.current(empty) is None
    assert [migrate.upgrade(empty), migrate.upgrade(empty)] == [migrate.HEAD] * 2
    assert migrate.current(empty) == migrate.HEAD
    with empty.begin() as connection:
        assert _differences(connection) == []


def test_eight_threads_may_migrate_at_once(empty):
    url = empty.url.render_as_string(hide_password=False)
    databases = [Database(url, pooled=False) for _ in range(8)]
    assert at_once(*[lambda d=one: migrate.upgrade(d) for one in databases]) == [migrate.HEAD] * 8
    assert empty.call("SELECT count(*) FROM alembic_version", {})[0][0] == 1


def test_several_processes_may_migrate_at_once(empty):
    code = "import sys; from loomq.store import engine, migrate; print(migrate.upgrade(engine.Database(sys.argv[1])))"
    url = empty.url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in answers] == [migrate.HEAD] * 3, answers
    assert migrate.current(empty) == migrate.HEAD


@pytest.mark.parametrize(
    "use",
    [goals.count_open, lambda database: nodes.live(database, 60), goals.end_overdue],
    ids=["begin", "call", "function"],
)
def test_a_database_that_was_not_migrated_says_what_to_type(empty, use):
    with pytest.raises(SchemaOutdatedError) as caught:
        use(empty)
    assert caught.value.hint == "run: loomq db upgrade"
    assert not caught.value.retryable
    assert empty.call("SELECT 1", {})[0][0] == 1


@contextmanager
def _dead_port(*, mute):
    """A port that nobody listens on, or where somebody listens and never answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if mute:
            held.listen()
        yield held.getsockname()[1]


WAYS = {
    "begin": goals.count_open,
    "call": lambda database: database.call("SELECT 1", {}),
    "listen": lambda database: database.listen("loomq_ended").__enter__(),
}


@pytest.mark.parametrize(
    ("way", "mute", "form"),
    [
        ("begin", False, "u:hunter2@127.0.0.1:{}/db"),
        ("call", False, "u:hunter2@127.0.0.1:{}/db"),
        ("listen", False, "u:hunter2@127.0.0.1:{}/db"),
        ("call", True, "u:hunter2@127.0.0.1:{}/db"),
        ("call", False, "u@127.0.0.1:{}/db?password=hunter2"),
        ("listen", False, "u@/db?host=127.0.0.1&port={}&password=hunter2"),
    ],
)
def test_a_database_out_of_reach_is_said_soon_and_without_its_password(way, mute, form):
    with _dead_port(mute=mute) as port:
        database = Database("postgresql://" + form.format(port))
        before = time.monotonic()
        with pytest.raises(DatabaseUnavailableError) as caught:
            WAYS[way](database)
        assert time.monotonic() - before < 3
    said = f"{caught.value!r} {caught.value} {caught.value.to_json()}"
    assert "hunter2" not in said
    assert "127.0.0.1" in said
    assert str(port) in said
    assert caught.value.retryable
    database.close()


def _own_pid(database):
    return database.call("SELECT pg_backend_pid()", {})[0][0]


def _end_connection(database):
    killed = _own_pid(database)
    other = Database(database.url.render_as_string(hide_password=False), pooled=False)
    other.call("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": killed})
    return killed


def test_a_call_is_answered_though_the_server_ended_its_connection(database):
    assert _end_connection(database) != _own_pid(database)


def test_a_transaction_whose_connection_the_server_ended_is_the_callers_to_repeat(database):
    with database.begin() as connection:  # of the pool of those that open transactions
        killed = connection.scalar(text("SELECT pg_backend_pid()"))
    database.call("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": killed})
    with pytest.raises(DatabaseUnavailableError):
        goals.count_open(database)
    assert goals.count_open(database) == 0
