"""What is done to a running storm: one function a kind of fault, each gives False if there is nothing to strike now."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg

from loomq.loom import Loom
from loomq.store.backlog import Due
from loomq.store.stages import StageKey
from tests.chaos.broker import Queues
from tests.chaos.servers import Clock, Running, Servers
from tests.chaos.supervisor import Member, Supervisor

_DOWN_S = (0.2, 2.0)
_BEYOND_THE_LEASE_S = (1.0, 3.0)


@dataclass(frozen=True)
class Hit:
    """A stage that a fault took its process from.

    Args:
        kind: The fault's.
        at: When, in seconds since the epoch.
        token: The claim that was hit.
    """

    kind: str
    at: float
    goal: str
    stage: str
    token: str


@dataclass
class Target:
    """The storm as a nemesis sees it.

    Args:
        lease_s: How long a claim holds without its node.
        hits: Stages that lost their process.
        back: When a server came back, and which fault had ended it.
        details: How much each kind has done, beside how often.
    """

    random: random.Random
    servers: Servers
    supervisor: Supervisor
    queues: Queues
    loom: Loom
    clock: Clock
    lease_s: float
    hits: list[Hit] = field(default_factory=list)
    back: list[tuple[str, float]] = field(default_factory=list)
    details: Counter[str] = field(default_factory=Counter)
    _busy: set[str] = field(default_factory=set)
    _connection: psycopg.Connection | None = None

    def ask(self, statement: str) -> list[Any] | None:
        """Ask Postgres past the relay; ``None`` if it does not answer."""
        try:
            if self._connection is None:
                self._connection = self.servers.connect()
            return self._connection.execute(statement).fetchall()
        except psycopg.OperationalError:
            self._connection = None
            return None

    def held(self) -> list[tuple[int, int, str, str, str]]:
        """List what is claimed: the process, its node's parent process, goal, stage and token."""
        return [
            (pid, parent, str(goal), stage, str(token))
            for pid, parent, goal, stage, token in self.ask(
                "SELECT s.pid, n.pid, s.goal_id, s.name || coalesce(':' || nullif(s.item, -1), ''), s.token"
                " FROM stages s JOIN nodes n ON n.id = s.node"
                " WHERE s.state = 'claimed' ORDER BY s.goal_id, s.name"
            )
            or ()
        ]

    def note_hits(self, kind: str, held: list[tuple[int, int, str, str, str]]) -> None:
        """Take note of the stages that a fault has taken the process from."""
        self.hits += [Hit(kind, time.time(), goal, stage, token) for _, _, goal, stage, token in held]

    def running_nodes(self) -> list[Member]:
        """List the nodes that run and are not stopped."""
        return [node for node in self.supervisor.nodes if node.pid and f"node {node.name}" not in self._busy]

    def spare_nodes(self) -> list[Member]:
        """List the running nodes that may fail now: another one serves, so that no stage waits for a start."""
        rows = self.ask("SELECT pid FROM nodes WHERE seen_at > clock_timestamp() - interval '2 s'") or ()
        serving = {pid for (pid,) in rows}
        running = self.running_nodes()
        return [node for node in running if any(other.pid in serving for other in running if other is not node)]

    def kill_node(self, node: Member, kind: str) -> bool:
        """Kill a node with its agent and its pool; False if it is gone already."""
        pid = node.pid
        if not pid:
            return False
        held = [claim for claim in self.held() if claim[1] == pid]
        node.signal(signal.SIGKILL)
        self.note_hits(kind, held)
        self.details["nodes_killed"] += 1
        return True

    def take(self, thing: str) -> bool:
        """Say whether a thing may be struck now, and if so keep other faults from it."""
        if thing in self._busy:
            return False
        self._busy.add(thing)
        return True

    def give(self, thing: str) -> None:
        """Let other faults have it again."""
        self._busy.discard(thing)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def child_kill(target: Target) -> bool:
    """Kill a pool's process that has a stage in hand."""
    pool = {child.pid for node in target.running_nodes() for child in node.children()}
    held = [claim for claim in target.held() if claim[0] in pool]
    if not held:
        return False
    victim = target.random.choice(held)[0]
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    target.note_hits("child_kill", [claim for claim in held if claim[0] == victim])
    return True


def _node_with_work(target: Target) -> Member | None:
    held = target.held()
    busy = [node for node in target.spare_nodes() if any(claim[1] == node.pid for claim in held)]
    return target.random.choice(busy) if busy else None


def node_kill(target: Target) -> bool:
    """Kill a node with its agent and its pool."""
    node = _node_with_work(target)
    return node is not None and target.kill_node(node, "node_kill")


def blackout(target: Target) -> bool:
    """Kill all nodes at once."""
    running = target.running_nodes()
    if len(running) < len(target.supervisor.nodes):
        return False
    for node in running:
        target.kill_node(node, "blackout")
    return True


def parent_kill(target: Target) -> bool:
    """Kill a node's parent process only: its pool and its agent are orphans."""
    node = _node_with_work(target)
    pid = node.pid if node is not None else 0
    if not pid:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    target.details["nodes_killed"] += 1
    return True


def agent_kill(target: Target) -> bool:
    """Kill a node's agent only: nobody extends its leases until the node has started another."""
    agents = [agent for node in target.running_nodes() if (agent := node.agent())]
    if not agents:
        return False
    with suppress(psutil.NoSuchProcess):
        target.random.choice(agents).kill()
    return True


def sweeper_kill(target: Target) -> bool:
    """Kill the node whose agent leads the sweepers."""
    led = target.ask("SELECT n.pid FROM leases l JOIN nodes n ON n.id = l.holder WHERE l.name = 'sweeper'") or []
    node = next((node for node in target.spare_nodes() if [(node.pid,)] == led), None)
    return node is not None and target.kill_node(node, "sweeper_kill")


def beat_kill(target: Target) -> bool:
    """Kill beat."""
    if not target.supervisor.beat.pid:
        return False
    target.supervisor.beat.signal(signal.SIGKILL)
    return True


def node_stop(target: Target) -> bool:
    """Stop a node with all its processes beyond its leases, and let it go on: whatever it brings then is too late."""
    node = _node_with_work(target)
    if node is None or not target.take(f"node {node.name}"):
        return False
    node.signal(signal.SIGSTOP)
    target.note_hits("node_stop", [claim for claim in target.held() if claim[1] == node.pid])

    def go_on() -> None:
        node.signal(signal.SIGCONT)
        target.give(f"node {node.name}")

    target.clock.after(target.lease_s + target.random.uniform(*_BEYOND_THE_LEASE_S), go_on)
    return True


def child_stop(target: Target) -> bool:
    """Stop one process of a pool beyond its lease, while its node lives."""
    pool = {child.pid for node in target.running_nodes() for child in node.children()}
    held = [claim for claim in target.held() if claim[0] in pool]
    if not held:
        return False
    victim = target.random.choice(held)[0]
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGSTOP)
    target.note_hits("child_stop", [claim for claim in held if claim[0] == victim])

    def go_on() -> None:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)

    target.clock.after(target.lease_s + target.random.uniform(*_BEYOND_THE_LEASE_S), go_on)
    return True


def _restart(target: Target, kind: str, running: Running, before_start: Callable[[], None] | None = None) -> bool:
    """Kill a server, leave it down for a while, and take note of when it is back."""
    name = running.server.name
    if not target.take(name):
        return False
    if not running.is_up:
        target.give(name)
        return False
    running.kill()

    def start() -> None:
        if before_start is not None:
            before_start()
        running.start()
        target.clock.when(lambda: running.is_up, is_back)

    def is_back() -> None:
        target.back.append((kind, time.time()))
        target.give(name)

    target.clock.after(target.random.uniform(*_DOWN_S), start)
    return True


def postgres_kill(target: Target) -> bool:
    """Kill Postgres with all its processes; it recovers from its log."""
    return _restart(target, "postgres_kill", target.servers.postgres)


def redis_kill_empty(target: Target) -> bool:
    """Kill Redis, and let it come back without its data."""
    return _restart(target, "redis_kill_empty", target.servers.redis, target.servers.wipe_redis)


def redis_kill_aof(target: Target) -> bool:
    """Kill Redis, and let it come back with what its append-only file holds."""
    return _restart(target, "redis_kill_aof", target.servers.redis)


def redis_cut_back(target: Target) -> bool:
    """Kill Redis, and let it come back as it was a second before: taken messages are there again, late ones gone."""

    def cut() -> None:
        target.details["redis_cut_bytes"] += target.servers.cut_aof()

    return _restart(target, "redis_cut_back", target.servers.redis, cut)


def flush(target: Target) -> bool:
    """Empty the broker while it runs, when there is something to lose."""
    lost = target.queues.total()
    if not lost:
        return False
    target.queues.flush()
    target.details["messages_flushed"] += lost
    target.back.append(("flush", time.time()))
    return True


def double(target: Target) -> bool:
    """Send every queued message a second time."""
    doubled = target.queues.double(target.random)
    target.details["messages_doubled"] += doubled
    return bool(doubled)


def early(target: Target) -> bool:
    """Send messages for stages that still wait for others, and for some that are done or in hand."""
    wanted = "SELECT goal_id, name, item, worker, tier, priority FROM stages WHERE state"
    rows = target.ask(
        f"({wanted} = 'waiting' ORDER BY goal_id, name LIMIT 20)"
        f" UNION ALL ({wanted} IN ('done', 'claimed') ORDER BY goal_id DESC, name LIMIT 10)"
    )
    for goal, name, item, worker, tier, priority in rows or ():
        target.loom.publisher.send_due(Due(StageKey(goal, name, item), worker, tier, priority, False, None, None))
    target.details["messages_early"] += len(rows or ())
    return bool(rows)


def malformed(target: Target) -> bool:
    """Send messages that no task can be made of."""
    target.details["messages_malformed"] += target.queues.send_malformed(target.random)
    return True


def commit_fails(target: Target) -> bool:
    """Let some writes succeed and look like failures to whoever asked for them."""
    target.servers.swallow_answers(target.random.randint(3, 10))
    return True


def disconnect(target: Target) -> bool:
    """Close every connection to the broker."""
    return target.queues.disconnect()


Nemesis = Callable[[Target], bool]

PROCESSES: dict[str, Nemesis] = {
    "child_kill": child_kill,
    "node_kill": node_kill,
    "blackout": blackout,
    "parent_kill": parent_kill,
    "agent_kill": agent_kill,
    "sweeper_kill": sweeper_kill,
    "beat_kill": beat_kill,
    "node_stop": node_stop,
    "child_stop": child_stop,
    "postgres_kill": postgres_kill,
    "commit_fails": commit_fails,
}
BROKER: dict[str, Nemesis] = {
    "flush": flush,
    "double": double,
    "early": early,
    "malformed": malformed,
    "disconnect": disconnect,
}
REDIS: dict[str, Nemesis] = {
    "redis_kill_empty": redis_kill_empty,
    "redis_kill_aof": redis_kill_aof,
    "redis_cut_back": redis_cut_back,
}
NEMESES = {**PROCESSES, **BROKER, **REDIS}
POISON = "poison"  # planted in some goals; it strikes by itself


def plan(rng: random.Random, kinds: list[str], count: int) -> list[str]:
    """Choose so many faults of these kinds: each kind comes before any comes again."""
    found: list[str] = []
    while len(found) < count:
        found += rng.sample(kinds, len(kinds))
    return found[:count]
