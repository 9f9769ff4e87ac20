"""Measure limits: ``python -m benchmarks.limits``, one JSON line a limit. Nothing in here judges a time.

Four nodes with two processes each take from one limit for a minute; two of them are killed meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Node, environment, open_servers, p95
from loomq.ids import uuid7
from loomq.loom import Loom
from loomq.messages import ModelTier, TaskStatus
from loomq.queues.limits import Bucket
from loomq.services import inspect
from loomq.services.submit import GoalHandle, submit_goal, submit_task
from loomq.settings import Settings
from loomq.store import stages
from loomq.store.stages import Place, StageKey
from loomq.testing import fake_llm, wait_until
from loomq.testing.llm import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.harness import Servers

PARTS = ("rate", "slots", "tokens", "cost", "turns", "priority")
_NODES, _SLOTS = 4, 2
_KILLED_AT = (1 / 3, 2 / 3)
_PER_S, _BURST, _SLOTS_MOST, _TOKENS = 20, 20, 4, 6000
_PROMPT, _ANSWER = 30, 20
_PATIENCE_S = 180.0
# A task writes its start down a moment after it was granted, and not always as long after: what is granted a second
# apart may be written down this much closer together.
_JITTER_S = 0.05
_SMALL, _TRIES, _URGENT = 0.25, 60, 20

_WORK = '''
"""What the workers of these benchmarks do: write down when, and wait."""

import time
from loomq.workers.base import SyncProcessingBackend


class Note(SyncProcessingBackend):
    def process_sync(self, payload, config):
        with open(payload["log"], "a") as log:
            log.write(f"{time.time():.6f} + {payload['n']}\\n")
        time.sleep(payload.get("s", 0))
        with open(payload["log"], "a") as log:
            log.write(f"{time.time():.6f} - {payload['n']}\\n")
        return {"output": {"n": payload["n"]}}


class Numbers(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": {"items": list(range(payload["n"]))}}
'''
_PROCESSOR = "worker_kind: processor\nprocessing_backend: work.{0}\n"
_WORKERS = {
    "free": _PROCESSOR.format("Note"),
    "rated": _PROCESSOR.format("Note") + f"rate_limit: {_PER_S}/s\n",
    "few": _PROCESSOR.format("Note") + f"max_concurrent: {_SLOTS_MOST}\n",
    "numbers": _PROCESSOR.format("Numbers"),
    "ask": "system_prompt: Answer.\nmax_output_tokens: 100\n",
}
_LARGE = {
    "name": "large",
    "pipeline_stages": [
        {"name": "numbers", "worker_type": "numbers", "input_mapping": {"n": "goal.context.n"}},
        {
            "name": "each",
            "worker_type": "free",
            "for_each": "numbers.output.items",
            "input_mapping": {"n": "item", "log": "goal.context.log", "s": "goal.context.s"},
        },
    ],
}


@dataclass
class Site:
    """A project with nodes at work, which may be killed.

    Args:
        log: Where tasks write down when they ran.
    """

    loom: Loom
    nodes: list[Node]
    log: Path

    def times(self, what: str = "+") -> list[float]:
        """When tasks began, or ended, in order."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return sorted(float(at) for at, sign, _ in lines if sign == what)


@contextmanager
def open_site(
    servers: Servers, *, nodes: int, slots: int, pool: str = "prefork", more: dict[str, str] | None = None
) -> Iterator[Site]:
    """Start nodes that serve a project with these limits."""
    with ExitStack() as stack:
        folder = servers.folder / f"project-{uuid7().hex}"
        for name in ("workers", "pipelines", "deploy"):
            (folder / name).mkdir(parents=True)
        (folder / "work.py").write_text(_WORK.lstrip())
        for name, said in _WORKERS.items():
            (folder / "workers" / f"{name}.yaml").write_text(f"name: {name}\n{said}")
        (folder / "pipelines" / "large.yaml").write_text(json.dumps(_LARGE))
        rules = {"rate_limits": {"standard": {"tokens_per_minute": _TOKENS}}}
        (folder / "deploy" / "router_rules.yaml").write_text(json.dumps(rules))
        given = {**servers.given, "project": folder, "import_allow": "work", "lease_seconds": 3}
        around = {
            **environment(),
            **{f"LOOMQ_{key.upper()}": str(value) for key, value in given.items()},
            **(more or {}),
        }
        loom = Loom(Settings.load(**given))
        stack.callback(loom.close)
        found: list[Node] = []
        for number in range(nodes):
            options = ("-P", pool, "-c", str(slots))
            node = Node(folder / f"node-{number}.log", "-A", "loomq", cwd=folder, environment=around, pool=options)
            found.append(node)
            stack.callback(node.stop)
            stack.callback(node.process.terminate)
        wait_until(lambda: len(inspect.live_nodes(loom)) == nodes, "the nodes", 60)
        yield Site(loom, found, folder / "log")


def _kill(site: Site, begun: float, seconds: float, killed: list[float]) -> None:
    """Kill the next node when its time has come."""
    if len(killed) < len(_KILLED_AT) and time.time() - begun >= _KILLED_AT[len(killed)] * seconds:
        site.nodes[len(killed)].kill()
        killed.append(time.time())


def _run(site: Site, seconds: float, first: Callable[[], float | None]) -> tuple[float, int]:
    """Let the nodes work for so long from their first start on, and kill two of them; gives when that was."""
    wait_until(first, "the first start", 60)
    begun, killed = first() or 0.0, []
    while time.time() < begun + seconds:
        _kill(site, begun, seconds, killed)
        time.sleep(0.05)
    return begun, len(killed)


def too_much(times: Sequence[float], per_s: float, burst: float, amounts: Sequence[float] | None = None) -> int:
    """Count the windows of time that hold more than their share."""
    found = 0
    for first in range(len(times)):
        total = 0.0
        for last in range(first, len(times)):
            total += amounts[last] if amounts else 1
            found += total > per_s * (times[last] - times[first] + _JITTER_S) + burst
    return found


def rate(servers: Servers, seconds: float) -> dict[str, Any]:
    """Eight processes on one rate."""
    with open_site(servers, nodes=_NODES, slots=_SLOTS) as site:
        for n in range(round(_PER_S * seconds) + 3 * _BURST):
            submit_task("rated", {"log": str(site.log), "n": n}, loom=site.loom)
        begun, killed = _run(site, seconds, lambda: next(iter(site.times()), None))
        times = [at for at in site.times() if at <= begun + seconds]
    allowed = _PER_S * seconds + _BURST
    return {
        "limit": f"rate {_PER_S}/s, burst {_BURST}",
        "processes": _NODES * _SLOTS,
        "nodes_killed": killed,
        "seconds": seconds,
        "allowed": round(allowed),
        "granted": len(times),
        "ratio": round(len(times) / allowed, 4),
        "violations": too_much(times, _PER_S, _BURST),
        "aim": "granted <= allowed, ratio >= 0.95, violations 0",
    }


def slots(servers: Servers, seconds: float) -> dict[str, Any]:
    """Eight processes on four slots, each task for 0.1 s."""
    task_s = 0.1
    with open_site(servers, nodes=_NODES, slots=_SLOTS) as site:
        for n in range(round(1.2 * _SLOTS_MOST * seconds / task_s)):
            submit_task("few", {"log": str(site.log), "n": n, "s": task_s}, loom=site.loom)
        begun, killed = _run(site, seconds, lambda: next(iter(site.times()), None))
        lines = sorted(line.split() for line in site.log.read_text().splitlines())
    died = {n for _, sign, n in lines if sign == "+"} - {n for _, sign, n in lines if sign == "-"}
    running = violations = most = 0
    for at, sign, n in lines:
        running += 0 if n in died else 1 if sign == "+" else -1
        most = max(most, running)
        violations += running > _SLOTS_MOST and float(at) <= begun + seconds
    done = sum(sign == "-" and float(at) <= begun + seconds for at, sign, _ in lines)
    allowed = _SLOTS_MOST * seconds / task_s
    return {
        "limit": f"max_concurrent {_SLOTS_MOST}",
        "processes": _NODES * _SLOTS,
        "nodes_killed": killed,
        "seconds": seconds,
        "allowed": round(allowed),
        "granted": done,
        "ratio": round(done / allowed, 4),
        "most_at_once": most,
        "violations": violations,
        "aim": "violations 0; the ratio pays for starting tasks, and for the slots of the dead until their lease ends",
    }


def tokens(servers: Servers, seconds: float) -> dict[str, Any]:
    """Four nodes with eight threads on one token budget, against the fake provider."""
    used = _PROMPT + _ANSWER
    rule = Rule(json={"ok": True}, prompt_tokens=_PROMPT, completion_tokens=_ANSWER, delay_seconds=0.2)
    stamps: list[float] = []

    def answer(_: Any) -> Rule:
        stamps.append(time.time())
        return rule

    with fake_llm([answer]) as server:
        more = server.environment("anthropic")
        with open_site(servers, nodes=_NODES, slots=8, pool="threads", more=more) as site:
            for n in range(round((_TOKENS * seconds / 60 + _TOKENS) / used) + 50):
                submit_task("ask", {"n": n}, tier=ModelTier.STANDARD, loom=site.loom)
            begun, killed = _run(site, seconds, lambda: stamps[0] if stamps else None)
    times = sorted(at for at in stamps if at <= begun + seconds)
    allowed = _TOKENS * (1 + seconds / 60)
    return {
        "limit": f"tokens_per_minute {_TOKENS}",
        "processes": _NODES,
        "nodes_killed": killed,
        "seconds": seconds,
        "allowed": round(allowed),
        "granted": used * len(times),
        "ratio": round(used * len(times) / allowed, 4),
        "violations": too_much(times, _TOKENS / 60, _TOKENS, [used] * len(times)),
        "aim": "granted <= allowed, ratio >= 0.95, violations 0",
    }


def cost(servers: Servers, tries: int = 1500) -> dict[str, Any]:
    """What a limit adds to a task: the median of a start's call to Redis, and of a claim that counts slots."""
    with open_site(servers, nodes=0, slots=1) as site:
        loom = site.loom
        limiter = loom.app.limiter
        bucket = Bucket("bench", "", 1e6, 1e6)
        limiter.look([bucket])
        call = [_timed_ms(lambda: limiter._call("take", [bucket], [1])) for _ in range(tries)]  # noqa: SLF001
        two = [bucket, Bucket("bench:2", "", 1e6, 1e6)]
        both = [_timed_ms(lambda: limiter._call("take", two, [1, 1])) for _ in range(tries)]  # noqa: SLF001
        said = json.dumps({"name": "free", "worker": 1000, "tiers": {"local": 1000}, "override": None, "moved": {}})
        claims: dict[str | None, list[float]] = {None: [], said: []}
        for _ in range(tries // 3):
            for limits, found in claims.items():
                handle = submit_task("free", {"log": "/dev/null", "n": 0}, loom=loom)
                key, place = StageKey(handle.goal_id, "free"), Place(uuid7(), 1, "bench")
                token = uuid7()
                found.append(_timed_ms(lambda: stages.claim(loom.database, key, token, place, 60, limits)))  # noqa: B023
                stages.complete(loom.database, key, token, output="{}")
    plain, counted = (statistics.median(found) for found in claims.values())
    return {
        "limit": "cost of a check",
        "rate_ms": round(statistics.median(call), 3),
        "worker_and_tier_rate_ms": round(statistics.median(both), 3),
        "slots_ms": round(counted - plain, 3),
        "claim_ms": round(plain, 3),
        "aim": "<= 0.2 ms each",
    }


def _timed_ms(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def turns(servers: Servers, items: int) -> dict[str, Any]:
    """Small goals beside one that fans out, of the same worker, each task for 50 ms; then alone."""
    task_s = 0.05
    with open_site(servers, nodes=1, slots=2) as site:
        loom = site.loom

        def small() -> float:
            handle = submit_task("free", {"log": "/dev/null", "n": 0, "s": task_s}, loom=loom)
            handle.result(timeout=_PATIENCE_S)
            return _took_ms(loom, handle)

        small()
        idle = [_after(_SMALL, small) for _ in range(_TRIES)]
        large = submit_goal("", pipeline="large", context={"n": items, "log": "/dev/null", "s": task_s}, loom=loom)
        wait_until(lambda: len(inspect.goal(loom, large.goal_id).stages) and _running(loom, large), "its items", 60)
        meanwhile = [_after(_SMALL, small) for _ in range(_TRIES)]
        went_on = large.status() is TaskStatus.PROCESSING
        large.cancel()
    return {
        "limit": f"turns: small goals beside one of {items:,} items",
        "idle_p50_ms": round(statistics.median(idle), 1),
        "idle_p95_ms": round(p95(idle), 1),
        "meanwhile_p50_ms": round(statistics.median(meanwhile), 1),
        "meanwhile_p95_ms": round(p95(meanwhile), 1),
        "ratio_p95": round(p95(meanwhile) / p95(idle), 2),
        "still_running": went_on,
        "aim": "ratio_p95 <= 2",
    }


def priority(servers: Servers) -> dict[str, Any]:
    """Urgent tasks behind a backlog of a thousand: how many others start between their row's birth and their start."""
    with open_site(servers, nodes=1, slots=1) as site:
        loom = site.loom
        for n in range(1000):
            submit_task("free", {"log": str(site.log), "n": n, "s": 0.02}, loom=loom)
        wait_until(lambda: len(site.times()) > 5, "the backlog to be worked on", 60)
        between = []
        for n in range(_URGENT):
            handle = submit_task("free", {"log": str(site.log), "n": 5000 + n}, priority="critical", loom=loom)
            handle.result(timeout=_PATIENCE_S)
            view = inspect.goal(loom, handle.goal_id)
            begun = view.stages[0].started_at
            assert begun is not None
            born, began = view.created_at.timestamp(), begun.timestamp()
            between.append(sum(born < at < began for at in site.times()))
    return {
        "limit": "priority: critical behind 1,000 normal",
        "tries": _URGENT,
        "others_started_between": {"median": statistics.median(between), "max": max(between)},
        "aim": "max 1: the one that a free slot had just taken",
    }


def _running(loom: Loom, handle: GoalHandle) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM stages WHERE goal_id = %(goal)s AND item >= 0 AND state = 'claimed')"
    return bool(loom.database.call(query, {"goal": handle.goal_id})[0][0])


def _took_ms(loom: Loom, handle: GoalHandle) -> float:
    query = "SELECT 1000 * extract(epoch FROM ended_at - created_at)::float8 FROM goals WHERE id = %(goal)s"
    return float(loom.database.call(query, {"goal": handle.goal_id})[0][0])


def _after(pause_s: float, work: Callable[[], float]) -> float:
    time.sleep(pause_s)
    return work()


def measured(parts: Sequence[str], seconds: float, items: int) -> Iterator[dict[str, Any]]:
    """Measure what was asked for, and give its lines."""
    works: dict[str, Callable[[Servers], dict[str, Any]]] = {
        "rate": lambda servers: rate(servers, seconds),
        "slots": lambda servers: slots(servers, seconds),
        "tokens": lambda servers: tokens(servers, seconds),
        "cost": cost,
        "turns": lambda servers: turns(servers, items),
        "priority": priority,
    }
    for part in parts:
        with open_servers() as servers:
            yield works[part](servers)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each limit (%(default)s)")
    parser.add_argument("--items", type=int, default=10_000, metavar="N", help="of the large goal (%(default)s)")
    given = parser.parse_args()
    for line in measured(given.parts.split(","), given.seconds, given.items):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
