"""The connection to Postgres: one engine a process, shared by threads, safe over forks."""

import subprocess
import sys
import textwrap

import pytest
from rows import at_once

from loomq.store.engine import Database, sqlalchemy_url

FORK = """
import os
import sys

from loomq.store.engine import Database

def backend(database):
    return database.call("SELECT pg_backend_pid()", {})[0][0]

database = Database(sys.argv[1])
own = backend(database)
database.call("CREATE TEMPORARY TABLE mine AS SELECT 1 AS n", {})
reader, writer = os.pipe()
child = os.fork()
if not child:
    # Not os._exit: everything that a process does at its end is to happen.
    os.write(writer, str(backend(database)).encode())
    {end}
_, status = os.waitpid(child, 0)
theirs = int(os.read(reader, 20))
kept = [tuple(row) for row in database.call("SELECT n FROM mine", {})]
print(status, theirs != own, backend(database) == own, kept)
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "database.close(); sys.exit(0)", "del database; sys.exit(0)"])
def test_a_forked_child_leaves_its_parents_connections_alone(database_url, end):
    script = textwrap.dedent(FORK).replace("{end}", end)
    ran = subprocess.run(
        [sys.executable, "-c", script, database_url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("0 True True [(1,)]\n", "")


def test_a_child_that_never_used_the_database_may_close_it(database_url):
    script = """
    import os, sys
    from loomq.store.engine import Database
    database = Database(sys.argv[1])
    own = database.call("SELECT pg_backend_pid()", {})
    child = os.fork()
    if not child:
        database.close()
        sys.exit(0)
    print(os.waitpid(child, 0)[1], database.call("SELECT pg_backend_pid()", {}) == own)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), database_url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("0 True\n", "")


def test_many_threads_may_be_the_first_to_use_a_database(database_url):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            prepared = []
            database = Database(database_url, prepare=lambda made=prepared: made.append(1), pool_size=16)
            assert len(set(map(id, at_once(*[lambda d=database: d.engine] * 16)))) == 1
            assert prepared == [1]
            database.close()
    finally:
        sys.setswitchinterval(before)


def test_services_are_prepared_before_the_first_connection_and_not_again(database_url):
    prepared = []
    database = Database(database_url, prepare=lambda: prepared.append(1))
    assert prepared == []
    for _ in range(3):
        database.call("SELECT 1", {})
    with database.listen("loomq_ended"):
        pass
    assert prepared == [1]
    database.close()


def test_a_transaction_is_kept_whole_or_not_at_all(database):
    def write():
        with database.begin() as connection:
            connection.exec_driver_sql("INSERT INTO specs (hash, body) VALUES ('a', '{}')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert database.call("SELECT count(*) FROM specs", {})[0][0] == 0
    with database.begin() as connection:
        connection.exec_driver_sql("INSERT INTO specs (hash, body) VALUES ('a', '{}')")
    assert database.call("SELECT count(*) FROM specs", {})[0][0] == 1


def test_connections_are_kept_unless_the_process_will_fork(database):
    def backend():
        return database.call("SELECT pg_backend_pid()", {})[0][0]

    assert backend() == backend()
    database.pool_connections(False)
    assert backend() != backend()


@pytest.mark.parametrize("url", ["postgresql://h/d", "postgres://h/d", "postgresql+psycopg://h/d"])
def test_every_spelling_of_a_url_means_psycopg(url):
    assert sqlalchemy_url(url) == "postgresql+psycopg://h/d"
