"""Run goals while faults strike: one seed, one storm, one report."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loomq.loom import Loom
from loomq.services import inspect
from loomq.settings import Settings
from loomq.store import migrate
from loomq.testing import wait_until
from tests.chaos import nemeses, rabbit, shapes
from tests.chaos.broker import Queues, RedisQueues
from tests.chaos.client import Client
from tests.chaos.ledger import WITNESS
from tests.chaos.nemeses import Target
from tests.chaos.servers import Clock, Servers
from tests.chaos.supervisor import Supervisor

LEASE_S = 3.0
_OPEN_AT_ONCE = 20
_AHEAD = 12  # goals that the client may be ahead of the faults, so that each finds work to strike
_GAP_S = (1.0, 2.5)
_STRIKE_WITHIN_S = 15.0
_HUNG_AFTER_S = 60.0
_TICK_S = 0.02
_LOOK_S = 0.1
_POISONED_SHARE = 0.03
_MOST_DOSES = 2  # of the five deliveries that a stage has


@dataclass(frozen=True)
class Given:
    """A goal that was accepted."""

    n: int
    shape: str
    goal_id: str


@dataclass
class World:
    """A run's folder, servers, nodes, and this process's own Loom.

    Args:
        own_vhost: The virtual host that was made for the run, if its broker is RabbitMQ.
    """

    folder: Path
    servers: Servers
    supervisor: Supervisor
    loom: Loom
    queues: Queues
    environment: dict[str, str]
    own_vhost: str | None = None

    @classmethod
    def make(cls, *, broker_url: str | None = None, nodes: int = 2, limited: bool = False) -> World:
        """Start the servers, migrate, and put the witnesses in place; nodes are not started.

        Args:
            broker_url: A RabbitMQ, in place of the run's own Redis.
            limited: Under limits that are felt.
        """
        vhost = rabbit.own_vhost(broker_url) if broker_url else None
        folder = Path(tempfile.mkdtemp(prefix="loomq-chaos-"))
        folder.chmod(0o711)
        servers = Servers(folder, redis=broker_url is None)
        try:
            shapes.write_project(folder / "project", limited=limited)
            (folder / "ledger").mkdir()
            servers.start()
            given = {
                "project": folder / "project",
                "data": folder / "unused",
                "database_url": servers.database_url,
                "broker_url": vhost or broker_url or servers.broker_url,
                "import_allow": "mine",
                "lease_seconds": LEASE_S,
                "heartbeat_seconds": 0.5,
                "sweep_seconds": 0.5,
                "grace_seconds": 2,
            }
            loom = Loom(Settings.load(**given))
            migrate.upgrade(loom.database)
            with servers.connect() as connection:
                connection.execute(WITNESS)
            kept = {key: value for key, value in os.environ.items() if not key.startswith("LOOMQ_")}
            kept.pop("PYTHONDONTWRITEBYTECODE", None)
            environment = {
                **kept,
                **{f"LOOMQ_{key.upper()}": str(value) for key, value in given.items()},
                shapes.LEDGER: str(folder / "ledger"),
                "PYTHONUNBUFFERED": "1",
            }
            queues = cls._queues(servers, vhost or broker_url)
            return cls(folder, servers, Supervisor(folder, environment, nodes), loom, queues, environment, vhost)
        except BaseException:
            servers.stop()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @staticmethod
    def _queues(servers: Servers, broker_url: str | None) -> RedisQueues | rabbit.RabbitQueues:
        names = [f"{worker}.local" for worker in shapes.WORKERS]
        if broker_url is None:
            return RedisQueues(str(servers.services.socket("redis")), names)
        return rabbit.RabbitQueues(broker_url, names)

    def start_nodes(self) -> None:
        """Start nodes and beat, and wait until the nodes serve."""
        self.supervisor.start()
        count = len(self.supervisor.nodes)
        wait_until(lambda: len(inspect.live_nodes(self.loom)) >= count, "the nodes", timeout_s=60)

    def open_goals(self) -> int:
        """Count the goals that have not ended."""
        with self.servers.connect() as connection:
            return connection.execute("SELECT count(*) FROM goals WHERE state = 'open'").fetchone()[0]

    def close(self, *, keep: bool) -> None:
        """End everything; keep the folder with its logs if somebody will want to read them."""
        self.supervisor.stop()
        self.loom.close()
        self.servers.stop()
        if self.own_vhost:
            rabbit.drop_vhost(self.own_vhost)
        elif isinstance(self.queues, rabbit.RabbitQueues):
            self.queues.remove()
        if keep:
            sys.stderr.write(f"logs and ledger are kept in {self.folder}\n")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Storm:
    """One seeded run.

    Args:
        kinds: The nemeses to choose from.
        poison: Whether some goals carry work that kills its own process.
    """

    world: World
    seed: int
    goals: int
    faults: int
    kinds: list[str]
    poison: bool = True
    struck: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._contexts = random.Random(self.seed + 1)
        self.plan = nemeses.plan(self._random, self.kinds, self.faults)
        self.clock = Clock()
        world = self.world
        self.target = Target(
            self._random, world.servers, world.supervisor, world.queues, world.loom, self.clock, LEASE_S
        )
        self.client = Client(world.folder, world.environment)
        self._shapes: dict[int, str] = {}
        self.began = 0.0
        self._struck = 0
        self._next_at = 0.0
        self._try_until: float | None = None
        self._looked_at = 0.0
        self._found = (0, 0)
        self._moved_at = 0.0

    def _choose(self, n: int) -> tuple[str, dict[str, Any]]:
        shape = list(shapes.SHAPES)[n % len(shapes.SHAPES)]
        context: dict[str, Any] = {"n": n}
        if self.poison and self._contexts.random() < _POISONED_SHARE:
            stage = self._contexts.choice(list(shapes.SHAPES[shape]))
            context["poison"] = {"stage": stage, "doses": self._contexts.randint(1, _MOST_DOSES)}
        return shape, context

    @property
    def given(self) -> list[Given]:
        """List the goals that were accepted."""
        return [Given(n, self._shapes[n], goal_id) for n, goal_id in self.client.goal_ids.items()]

    def run(self) -> None:
        """Hand in all goals, strike all faults, and wait until all goals have ended or nothing moves any more."""
        self.world.start_nodes()
        self.began = self._moved_at = time.monotonic()
        try:
            while not self._is_over():
                self.world.supervisor.look()
                self.clock.tick()
                self.world.servers.measure_aof()
                self._look()
                self._strike()
                time.sleep(_TICK_S)
        finally:
            self.client.close()
            self.target.close()

    def _look(self) -> None:
        """See how many goals are open, and hand in more: a few at a time, and in step with the faults."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        self.client.look()
        rows = self.target.ask("SELECT count(*) FILTER (WHERE state = 'open'), count(*) FROM goals")
        if rows is None:
            return
        found = (rows[0][0], rows[0][1])
        if found != self._found:
            self._found, self._moved_at = found, now
        open_now = found[0] + self.client.asked - found[1]
        in_step = self.goals * (self._struck + 1) // max(len(self.plan), 1) + _AHEAD
        if self._struck >= len(self.plan):
            in_step = self.goals
        while self.client.asked < min(in_step, self.goals) and open_now < _OPEN_AT_ONCE:
            n = self.client.asked
            self._shapes[n], context = self._choose(n)
            self.client.ask(self._shapes[n], context, f"{self.seed}-{n}")
            open_now += 1

    def _strike(self) -> None:
        """Strike the next fault when its share of the goals is in and the last one is long enough ago."""
        if self._struck >= len(self.plan):
            return
        now = time.monotonic()
        if now < self._next_at or self.client.asked < self.goals * self._struck // len(self.plan):
            return
        kind = self.plan[self._struck]
        self._try_until = self._try_until or now + _STRIKE_WITHIN_S
        if nemeses.NEMESES[kind](self.target):
            self.struck[kind] += 1
            sys.stderr.write(f"{now - self.began:7.2f} s  {kind}\n")
        elif now < self._try_until:
            return
        else:
            self.missed[kind] += 1
        self._struck += 1
        self._try_until = None
        self._next_at = now + self._random.uniform(*_GAP_S)

    def _is_over(self) -> bool:
        struck = self._struck >= len(self.plan) and self.clock.is_idle
        if struck and len(self.client.goal_ids) >= self.goals and self._found == (0, self.goals):
            return True
        return time.monotonic() - self._moved_at > _HUNG_AFTER_S
