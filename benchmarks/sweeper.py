"""Measure what the sweeper costs and how a backlog drains: ``python -m benchmarks.sweeper [--json]``."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness import PROJECT, environment, loomq_node, open_servers, plain_connection
from loomq.ids import uuid7
from loomq.loom import Loom
from loomq.processes import die_with_parent
from loomq.queues.names import urgency
from loomq.services.submit import submit_goal
from loomq.settings import Settings
from loomq.testing import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from benchmarks.harness import Node, Servers

_ROUTES = 10
_PATIENCE_S = 300.0

# The mix of open stages that nothing can be done about just now: of ten, four wait for others, two are ready and have
# no worker, two are ready later, one is on its queue and one is in hand.
_MIX = """
INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left, follows)
SELECT id, 'mix', 'pipeline', 'none', '', '{}', 1, 'open', 5, false FROM unnest(%(goals)s::uuid[]) AS id;
"""
_MIX_STAGES = """
INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                    max_retries, attempt, deliveries, history, not_before, ready_at, published_at, started_at,
                    token, lease_until, node, pid)
SELECT (%(goals)s::uuid[])[n / 5 + 1], 's' || n, -1, 'bench' || n / 10 %% %(routes)s, 'local', 1, kind,
       CASE kind WHEN 'waiting' THEN 1 ELSE 0 END, '{}', '{}', 60, 2, 1, 0, '[]',
       CASE WHEN n %% 10 IN (6, 7) THEN clock_timestamp() + interval '1 hour' END, clock_timestamp(),
       CASE WHEN kind IN ('published', 'claimed') THEN clock_timestamp() END,
       CASE kind WHEN 'claimed' THEN clock_timestamp() END,
       CASE kind WHEN 'claimed' THEN gen_random_uuid() END,
       CASE kind WHEN 'claimed' THEN clock_timestamp() + interval '1 hour' END,
       CASE kind WHEN 'claimed' THEN %(node)s::uuid END, n
FROM generate_series(0, %(count)s - 1) AS n,
     LATERAL (SELECT (ARRAY['waiting', 'waiting', 'waiting', 'waiting', 'ready', 'ready', 'ready', 'ready', 'published',
                            'claimed'])[n %% 10 + 1] AS kind) AS k
"""
# As many goals as asked, each like one that was submitted for real.
_COPY_GOALS = """
INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left, follows)
SELECT new_id, g.pipeline, g.kind, g.snapshot, g.instruction, g.context, g.priority, 'open', g.leaves_left, g.follows
FROM goals g, unnest(%(goals)s::uuid[]) AS new (new_id) WHERE g.id = %(like)s
"""
_COPY_STAGES = """
INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                    max_retries, attempt, deliveries, history, ready_at)
SELECT new_id, s.name, s.item, s.worker, s.tier, s.priority, 'ready', s.waits_for, s.children, s.reads, s.timeout_s,
       s.max_retries, 1, 0, '[]', clock_timestamp()
FROM stages s, unnest(%(goals)s::uuid[]) AS new (new_id) WHERE s.goal_id = %(like)s
"""
_COUNTERS = """
CREATE SEQUENCE bench_published;
CREATE SEQUENCE bench_done;
CREATE FUNCTION bench_count() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM nextval('bench_' || NEW.state); RETURN NULL; END $$;
CREATE TRIGGER bench_count AFTER UPDATE ON stages FOR EACH ROW
    WHEN (NEW.state IN ('published', 'done') AND NEW.state <> OLD.state) EXECUTE FUNCTION bench_count();
"""


class Usage:
    """The processor time of some processes since this was made.

    Args:
        pids: Processes by what they are called; each may be several.
    """

    def __init__(self, **pids: list[int]) -> None:
        self._processes = {name: [psutil.Process(pid) for pid in found] for name, found in pids.items()}
        self._begun = time.perf_counter()
        self._before = self._seconds()

    def _seconds(self) -> dict[str, float]:
        return {name: sum(sum(process.cpu_times()[:2]) for process in found) for name, found in self._processes.items()}

    def percent(self) -> dict[str, float]:
        """Give each one's share of one core since then."""
        elapsed = time.perf_counter() - self._begun
        return {name: round(100 * (after - self._before[name]) / elapsed, 2) for name, after in self._seconds().items()}


def idle(servers: Servers, *, stages: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure a sweeper alone, and a node's agent that leads, over open stages that need nothing."""
    with ExitStack() as stack:
        loom = Loom(Settings.load(**servers.given))
        stack.callback(loom.close)
        database = stack.enter_context(plain_connection(loom.database))
        _write_mix(loom, database, stages)
        with _sweeper(servers) as process:
            wait_until(lambda: _leads(database), "the sweeper to lead")
            yield {"benchmark": "sweep_idle", "stages": stages, **_usage(database, [process.pid], seconds)}
        node = loomq_node(servers.folder, servers.given)
        stack.callback(node.stop)
        stack.callback(node.process.terminate)
        agent = wait_until(lambda: _agent_of(node), "the node's agent")
        wait_until(lambda: _leads(database), "the agent to lead")
        yield {"benchmark": "agent_idle", "stages": stages, **_usage(database, [agent], seconds)}
        with _sweeper(servers) as process:
            yield {"benchmark": "sweep_second", "stages": stages, **_usage(database, [process.pid], seconds)}


def _write_mix(loom: Loom, database: psycopg.Connection[Any], count: int) -> None:
    holder, found = uuid7(), [uuid7() for _ in range(count // 5)]
    database.execute(_MIX, {"goals": found})
    database.execute(_MIX_STAGES, {"goals": found, "count": count, "routes": _ROUTES, "node": holder})
    each = count // 10 // _ROUTES  # as many messages as rows say; nobody takes them

    def send(producer: Any) -> None:
        channel = producer.channel
        for number in range(_ROUTES):
            key = channel._q_for_pri(f"bench{number}.local", loom.app.broker_priority(urgency(1)))  # noqa: SLF001
            channel.client.lpush(key, *["{}"] * each)

    loom.app.broker.run(send)


def _usage(database: psycopg.Connection[Any], pids: list[int], seconds: float) -> dict[str, Any]:
    time.sleep(5)  # imports and first connections are over
    backends = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'loomq'"
    ).fetchall()
    here = [pid for (pid,) in backends if psutil.pid_exists(pid)]  # none, if the server is on another machine
    calls = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    usage, (before,) = Usage(process=pids, postgres=here), database.execute(calls).fetchone() or (0,)
    time.sleep(seconds)
    found, (after,) = usage.percent(), database.execute(calls).fetchone() or (0,)
    return {
        "process_percent": found["process"],
        "postgres_percent": found["postgres"] if here else None,
        "calls_per_s": round((after - before) / seconds, 1),
        "aim": "process <= 2 % of one core",
    }


@contextmanager
def _sweeper(servers: Servers) -> Iterator[subprocess.Popen[bytes]]:
    mine = {f"LOOMQ_{key.upper()}": str(value) for key, value in servers.given.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "loomq.cli.main", "sweep"],
        cwd=PROJECT,
        env={**environment(), **mine},
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  (this process has one thread)
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _leads(database: psycopg.Connection[Any]) -> bool:
    found = database.execute("SELECT 1 FROM leases WHERE name = 'sweeper' AND until > clock_timestamp()").fetchone()
    return bool(found)


def _agent_of(node: Node) -> int | None:
    for child in psutil.Process(node.process.pid).children():
        if "loomq.node" in child.cmdline():
            return child.pid
    return None


def drain(servers: Servers, *, backlog: int, runs: int, flush: bool) -> dict[str, Any]:
    """Let a node work on a backlog and count its messages; ``flush`` empties the broker half way through."""
    with ExitStack() as stack:
        loom = Loom(Settings.load(**servers.given))
        stack.callback(loom.close)
        database = stack.enter_context(plain_connection(loom.database))
        write_backlog(loom, database, backlog)
        node = loomq_node(servers.folder, servers.given)
        stack.callback(node.stop)
        stack.callback(node.process.terminate)

        def reach(number: int) -> int:
            wait_until(lambda: _count(database, "done") >= number, f"{number} stages", _PATIENCE_S)
            return _count(database, "done")

        first, begun = reach(min(200, runs // 5)), time.perf_counter()
        healed = _flush(loom, database, reach(runs // 2)) if flush else {}
        done, elapsed = reach(runs), time.perf_counter() - begun
        sent = "SELECT count(*) FROM stages WHERE state = 'published'"
        published, (waiting,) = _count(database, "published"), database.execute(sent).fetchone() or (0,)
        return {
            "benchmark": "drain",
            "backlog": backlog,
            "stages": done,
            "stages_per_s": round((done - first) / elapsed, 1),
            "published_per_stage": round((published - waiting) / done, 4),
            **healed,
            "aim": "published_per_stage <= 1.05" + ", healed_s <= 10" * flush,
        }


def write_backlog(loom: Loom, database: psycopg.Connection[Any], count: int) -> None:
    """Write so many waiting goals of one stage, and counters of what becomes of them."""
    like = submit_goal("", pipeline="single", context={"n": 1}, loom=loom).goal_id
    for begin in range(0, count, 10_000):
        found = [uuid7() for _ in range(min(count - begin, 10_000))]
        database.execute(_COPY_GOALS, {"goals": found, "like": like})
        database.execute(_COPY_STAGES, {"goals": found, "like": like})
    database.execute(_COUNTERS)


def _count(database: psycopg.Connection[Any], what: str) -> int:
    """Read how often a stage has come into a state since the counters were made."""
    found = database.execute(f"SELECT last_value * is_called::integer FROM bench_{what}").fetchone()
    return int((found or (0,))[0])


def _flush(loom: Loom, database: psycopg.Connection[Any], done: int) -> dict[str, Any]:
    """Empty the broker, and time until every stage whose message went with it has run."""
    loom.app.broker.run(lambda producer: producer.channel.client.flushdb())
    begun = time.perf_counter()
    lost = [goal for (goal,) in database.execute("SELECT goal_id FROM stages WHERE state = 'published'").fetchall()]
    left = "SELECT count(*) FROM stages WHERE goal_id = ANY (%(lost)s) AND state <> 'done'"
    wait_until(lambda: database.execute(left, {"lost": lost}).fetchone() == (0,), "the lost messages' stages", 60)
    return {"flushed_after": done, "lost": len(lost), "healed_s": round(time.perf_counter() - begun, 2)}


def line_of(found: dict[str, Any]) -> str:
    """Write a result for people."""
    rest = "  ".join(f"{key} {value}" for key, value in found.items() if key not in {"benchmark", "aim"})
    return f"{found['benchmark']:<14}{rest}   ({found['aim']})"


def measured(*, parts: str, seconds: float, stages: int, backlog: int, runs: int) -> Iterator[dict[str, Any]]:
    """Measure what was asked for, each backlog over servers of its own."""
    if "idle" in parts:
        with open_servers() as servers:
            yield from idle(servers, stages=stages, seconds=seconds)
    if "drain" in parts:
        for size, flush in ((1_000, False), (backlog, False), (backlog, True)):
            with open_servers() as servers:
                yield drain(servers, backlog=size, runs=min(runs, size - 100), flush=flush)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeper", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark on stdout")
    parser.add_argument("--parts", default="idle,drain", help="what to measure (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="how long to look (%(default)s)")
    parser.add_argument("--stages", type=int, default=10_000, metavar="N", help="open stages (%(default)s)")
    parser.add_argument("--backlog", type=int, default=100_000, metavar="N", help="waiting stages (%(default)s)")
    parser.add_argument("--runs", type=int, default=5_000, metavar="N", help="stages to run of them (%(default)s)")
    asked = vars(parser.parse_args())
    as_json = asked.pop("json")
    for found in measured(**asked):
        print(json.dumps(found) if as_json else line_of(found), flush=True)


if __name__ == "__main__":
    main()
