"""An older release's database with goals in flight, upgraded: nothing is lost, and both versions work side by side."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import rows
import shapes
from alembic import command
from sqlalchemy import text

from loomq.errors import EnvironmentNotReadyError, SchemaNewerError
from loomq.ids import uuid7
from loomq.loom import Loom
from loomq.services.submit import submit_goal
from loomq.settings import Settings
from loomq.store import goals, migrate, stages
from loomq.store.engine import Database
from loomq.store.stages import Place, StageKey
from loomq.testing import wait_until

RECORDED = json.loads((Path(__file__).parents[1] / "replay" / "0001.json").read_text())
# A minute passes between the release that wrote the rows and the one that finds them.
LATER = [
    f"UPDATE {table} SET {', '.join(f'{column} = {column} - interval {chr(39)}1 min{chr(39)}' for column in columns)}"
    for table, columns in {
        "goals": ["created_at", "ended_at"],
        "stages": ["ready_at", "published_at", "started_at", "ended_at", "not_before", "lease_until"],
        "chords": ["created_at"],
        "leases": ["until"],
    }.items()
]


@pytest.fixture
def database_url(server_urls):
    """A database as the recorded release left it: its revision, and no row yet."""
    url = Database(server_urls[0]).url.set(database=f"loomq_test_{uuid4().hex[:12]}")
    with psycopg.connect(_plain(Database(server_urls[0]).url), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {url.database} TEMPLATE template0")
        found = Database(url.render_as_string(hide_password=False), pooled=False)
        alembic = migrate.config()
        with found.begin() as connection:
            alembic.attributes["connection"] = connection
            command.upgrade(alembic, RECORDED["revision"])
        yield url.render_as_string(hide_password=False)
        admin.execute(f"DROP DATABASE {url.database} WITH (FORCE)")


def _plain(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_goals_of_the_release_before_are_brought_to_their_end_after_an_upgrade(project, loom, start_node):
    shapes.write(project)
    with psycopg.connect(_plain(loom.database.url), autocommit=True) as old:
        for statement, parameters in RECORDED["calls"]:
            old.execute(statement, parameters)
        for statement in LATER:
            old.execute(statement)
    states = {state for (state,) in loom.database.call("SELECT DISTINCT state FROM stages", {})}
    assert states == {"waiting", "ready", "published", "claimed", "done", "failed", "cancelled", "dead"}

    assert migrate.upgrade(loom.database) == migrate.HEAD
    start_node()

    last = {"raw_chain": "task:{}-c3", "raw_chord": "task:{}-x3"}
    ends = {key: last.get(goal["shape"], "{}").format(key) for key, goal in RECORDED["goals"].items()}

    def found():
        known = loom.database.call("SELECT key, state FROM idempotency_keys k JOIN goals g ON g.id = k.goal_id", {})
        return {key: state for key, state in known if key in ends.values()}

    expected = {ends[key]: goal["state"] for key, goal in RECORDED["goals"].items()}
    wait_until(lambda: found() == expected, "the goals to end")
    outputs = loom.database.call("SELECT name, (output ->> 'n')::int FROM stages WHERE state = 'done'", {})
    assert {name for name, _ in outputs} == set(shapes.EVERY)
    assert all(n == shapes.expected(name, 1) for name, n in outputs)
    again = submit_goal("again", pipeline="line", context={"n": 5}, idempotency_key="begun", loom=loom)
    assert not again.created
    assert again.result(timeout=1)["l3"] == {"n": 4}


class OldSubmit:
    """The database as the recorded release spoke to it when it wrote a goal."""

    def __init__(self, database):
        self._database = database

    def call(self, statement, parameters, **more):
        """Make the call that this one was then."""
        (one,) = json.loads(parameters["goals"])
        bodies = json.loads(parameters["bodies"])
        asked = {
            "goal": json.dumps(one["goal"]),
            "stages": json.dumps(one["stages"]),
            "key": one["key"],
            "hash": one["hash"],
            "body": json.dumps(bodies[one["hash"]]) if one["hash"] in bodies else None,
        }
        statement = "SELECT 1, * FROM loomq_submit(%(goal)s, %(stages)s, %(key)s, %(hash)s, %(body)s)"
        return self._database.call(statement, asked, **more)


class OldNode:
    """A node of the recorded release: what its code said to the database, word for word, on connections kept open."""

    CLAIM = (
        "SELECT * FROM loomq_claim(%(goal)s, %(name)s, %(item)s, %(token)s, %(node)s, %(pid)s, %(message)s, %(lease)s)"
    )
    COMPLETE = (
        "SELECT * FROM loomq_complete(%(goal)s, %(name)s, %(item)s, %(token)s, %(output)s, %(model)s, %(tokens)s,"
        " %(ms)s, %(room)s, %(carried)s, %(chord)s, %(position)s)"
    )
    FAIL = "SELECT loomq_fail(%(goal)s, %(name)s, %(item)s, %(token)s, %(error)s, %(retryable)s, %(delay)s, false)"
    TAKE_BACK = "SELECT * FROM loomq_take_back(%(node)s, %(gone)s, %(lease)s, %(max)s, %(limit)s)"
    TAKE_READY = "SELECT * FROM loomq_take_ready(%(worker)s, %(tier)s, %(limit)s)"

    def __init__(self, database):
        self.id = uuid7()
        self.connection = psycopg.connect(_plain(database.url), autocommit=True, prepare_threshold=None)

    def call(self, statement, **parameters):
        """Make a call, once more if it was a deadlock's victim, as that release did."""
        try:
            return self.connection.execute(statement, parameters).fetchall()
        except psycopg.errors.DeadlockDetected:
            return self.connection.execute(statement, parameters).fetchall()

    def claim(self, key, token):
        """Claim a stage; gives (attempt, deliveries)."""
        place = {"node": self.id, "pid": 7, "message": "message", "lease": 15}
        rows = self.call(self.CLAIM, **key.parameters(), token=token, **place)
        return (rows[0][6], rows[0][7]) if rows else None

    def complete(self, key, token):
        """Complete a stage."""
        nothing = dict.fromkeys(["model", "tokens", "chord", "position"])
        room = json.dumps({"echo.local": 9})
        ((verdict, *_),) = self.call(
            self.COMPLETE, **key.parameters(), token=token, output="{}", ms=1, room=room, carried=[], **nothing
        )
        return verdict

    def fail(self, key, token):
        """Fail a stage that may be retried at once."""
        ((verdict,),) = self.call(self.FAIL, **key.parameters(), token=token, error="{}", retryable=True, delay=0)
        return verdict

    def lose(self):
        """Take back what this node's process holds, and put something on the queue."""
        self.call(self.TAKE_BACK, node=self.id, gone=[7], lease=15, max=5, limit=500)
        self.call(self.TAKE_READY, worker="echo", tier="local", limit=1)


class NewNode:
    """The same by this version's code."""

    def __init__(self, database):
        self.id = uuid7()
        self.database = database

    def claim(self, key, token):
        found = stages.claim(self.database, key, token, Place(self.id, 8, "message"), 15)
        return (found.attempt, found.deliveries) if found else None

    def complete(self, key, token):
        return stages.complete(self.database, key, token, output="{}", room={"echo.local": 9}).verdict

    def fail(self, key, token):
        return stages.fail(self.database, key, token, error={}, retryable=True).verdict

    def lose(self):
        stages.take_back(self.database, lease_s=15, max_deliveries=5, node=self.id, gone=[8])
        rows.take(self.database, 1)


def _work(node, database, over, done):
    """Claim, fail, lose and complete whatever is there until all goals have ended."""
    turn = 0
    while not over.is_set():
        due = database.call("SELECT goal_id, name FROM stages WHERE state IN ('ready', 'published') LIMIT 8", {})
        for goal_id, name in due:
            turn += 1
            key, token = StageKey(goal_id, name), uuid7()
            claimed = node.claim(key, token)
            if claimed is None:
                continue
            attempt, deliveries = claimed
            if turn % 5 == 0 and attempt == 1:
                assert node.fail(key, token) == "retried"
            elif turn % 7 == 0 and deliveries == 1:
                node.lose()
            else:
                done.update({node.complete(key, token): 1})


DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


def test_two_versions_share_a_database_while_it_is_upgraded_and_after(database):
    database.call(shapes.LOG_ENDS, {})
    other = Database(database.url.render_as_string(hide_password=False))
    over, olds, news = threading.Event(), Counter(), Counter()
    old = [OldNode(database), OldNode(database)]
    works = [*((node, olds) for node in old), *((NewNode(other), news) for _ in range(2))]
    threads = [threading.Thread(target=_work, args=(node, other, over, done)) for node, done in works]
    before = [rows.submit_dag(OldSubmit(database), DIAMOND) for _ in range(40)]
    try:
        for thread in threads[:2]:
            thread.start()
        wait_until(lambda: olds["accepted"] > 10, "the old nodes to work")
        assert migrate.upgrade(database) == migrate.HEAD
        after = [rows.submit_dag(database, DIAMOND) for _ in range(40)]
        for thread in threads[2:]:
            thread.start()
        wait_until(lambda: not goals.count_open(database), "the goals to end")
    finally:
        over.set()
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(10)
        for node in old:
            node.connection.close()
        other.close()

    assert {goals.state_of(database, goal) for goal in before + after} == {"done"}
    assert database.call("SELECT count(*), count(DISTINCT (goal_id, name)) FROM ends", {}) == [(320, 320)]
    assert min(olds["accepted"], news["accepted"]) > 20
    assert olds["accepted"] + news["accepted"] == 320


@pytest.fixture
def reader(database):
    """A session in whose open transaction the stages were read."""
    with psycopg.connect(_plain(database.url), application_name="a long report") as connection:
        connection.execute("SELECT count(*) FROM stages")
        yield connection


def test_a_migration_waits_for_a_long_transaction_and_lets_everybody_else_pass(database, reader):
    goal = rows.submit(OldSubmit(database), rows.new_stage("a"))
    done, longest = [], 0.0
    thread = threading.Thread(target=lambda: done.append(migrate.upgrade(database, lock_wait_s=0.2)))
    thread.start()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        begun = time.monotonic()
        assert database.call("SELECT state FROM stages WHERE goal_id = %(goal)s", {"goal": goal}) == [("ready",)]
        longest = max(longest, time.monotonic() - begun)
    assert not done
    assert longest > 0.1, "the migration never asked for the table"
    assert longest < 1
    reader.rollback()
    thread.join(30)
    assert done == [migrate.HEAD]


def test_a_migration_that_cannot_get_a_table_gives_up_and_names_who_holds_it(database, reader):
    wait_until(lambda: _age_s(database) > 1, "the transaction to be worth a word")
    with pytest.raises(EnvironmentNotReadyError, match=f"pid {reader.info.backend_pid} .a long report, idle in trans"):
        migrate.upgrade(database, lock_wait_s=0.1, patience_s=0.1)
    assert migrate.current(database) == RECORDED["revision"]


def _age_s(database):
    age = "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity"
    return database.call(f"{age} WHERE application_name = 'a long report'", {})[0][0]


def test_a_newer_schema_is_left_alone_and_an_embedded_database_with_it_is_used(database, project, monkeypatch):
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaNewerError, match="at revision 9999; this version knows none after"):
        migrate.upgrade(database)
    monkeypatch.setattr("loomq.loom.ensure", lambda *_, **__: None)
    given = {key: value for key, value in project.settings_given.items() if key != "database_url"}
    embedded_loom = Loom(Settings.load(**given))
    url = database.url.render_as_string(hide_password=False)
    monkeypatch.setattr(type(embedded_loom.services), "database_url", property(lambda _: url))
    assert migrate.current(embedded_loom.database) == "9999"
    embedded_loom.close()
