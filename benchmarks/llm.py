"""Measure language model workers: ``python -m benchmarks.llm``, one JSON line a part. Nothing in here judges a time.

A provider in a process of its own answers each call after 200 ms; a hundred calls shall be under way in one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness import Node, environment, open_servers
from loomq.ids import uuid7
from loomq.llm.asking import Asker
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.loom import Loom
from loomq.processes import die_with_parent
from loomq.services import inspect
from loomq.services.submit import submit_task
from loomq.settings import Settings
from loomq.testing import wait_until
from loomq.tools.toolbox import Toolboxes
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness import Servers

PARTS = ("calls", "tasks", "conversations", "batch")
_SLOTS, _LATENCY_S, _ROUNDS = 100, 0.2, 5
_PATIENCE_S = 300.0
_TOOLS = '''
"""The tool of these benchmarks: gives a number back."""

import json
from loomq.tools.base import ToolProvider


class Echo(ToolProvider):
    def get_definition(self):
        parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        return {"name": "echo", "description": "Give a number back.", "parameters": parameters}

    async def execute(self, arguments):
        return json.dumps(arguments)
'''
_WORKERS = {
    "ask": "system_prompt: Answer.\n",
    "talk": "system_prompt: Use the tool.\n"
    "knowledge_silos:\n  - {name: echo, type: tool, provider: tools_of_bench.Echo}\n",
    "join": f"system_prompt: Join.\nbatch: {{max_size: 20, max_wait_ms: {_LATENCY_S * 250:g}}}\n",
}


def _rules() -> str:
    call = {"tool_calls": [{"name": "echo", "arguments": {"n": 1}}], "delay_seconds": _LATENCY_S}
    last = {"json": {"ok": True}, "delay_seconds": _LATENCY_S}
    rounds = [{"offers": "echo", "tool_results": number, **call} for number in range(_ROUNDS - 1)]
    joined = {
        "matches": "exactly 20 answers", "json": {"results": [{"ok": True}] * 20}, "delay_seconds": _LATENCY_S,
    }  # fmt: skip
    return json.dumps({"rules": [*rounds, joined, last]})


@contextmanager
def provider(folder: Path) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """Serve the fake provider in a process of its own; gives the variables that lead to it."""
    rules = folder / "rules.yaml"
    rules.write_text(_rules())
    with subprocess.Popen(
        [sys.executable, "-m", "loomq", "fake-llm", "--port", "0", "--rules", str(rules), "--json"],
        stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent(15),  # noqa: PLW1509  (one thread so far)
    ) as process:  # fmt: skip
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") or text.count("{") != text.count("}"):
            text += process.stdout.readline()
        try:
            yield json.loads(text)["environment"], psutil.Process(process.pid)
        finally:
            process.terminate()


def calls(servers: Servers, count: int) -> dict[str, Any]:
    """A hundred threads of one process, each with one call after another: no queue, no database."""
    with provider(servers.folder) as (variables, theirs):
        pool, loop = HttpPool(), EventLoop()
        models = LLMWorkers(
            Asker(Tiers(pool, LLMSettings(variables))), loop, Toolboxes(servers.folder, ()), servers.folder
        )
        spec = WorkerSpec.model_validate({"name": "ask", "system_prompt": "Answer."})
        each = max(count // _SLOTS, 1)

        def work() -> None:
            for number in range(each):
                models.run(spec, {"n": number}, "standard", 60)

        models.run(spec, {}, "standard", 60)
        process = psutil.Process()
        before, spent, others = process.memory_info().rss, sum(process.cpu_times()[:2]), sum(theirs.cpu_times()[:2])
        threads = [threading.Thread(target=work) for _ in range(_SLOTS)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - begun
        grown, spent = process.memory_info().rss - before, sum(process.cpu_times()[:2]) - spent
        others = sum(theirs.cpu_times()[:2]) - others
        loop.run(pool.aclose(), 5)
    return {
        "part": f"calls: {_SLOTS} threads of one process, {_LATENCY_S * 1000:g} ms a call",
        **_figures(_SLOTS * each, 1, took_s),
        "cpu_ms_a_call": round(1000 * spent / (_SLOTS * each), 2),
        "provider_cpu_ms_a_call": round(1000 * others / (_SLOTS * each), 2),
        "memory_grown_mb": round(grown / 2**20, 1),
    }


def tasks(servers: Servers, count: int, worker: str = "ask", rounds: int = 1) -> dict[str, Any]:
    """The same as goals through one node with ``-P threads -c 100``: claim, journal, completion and all."""
    with ExitStack() as stack:
        variables, _ = stack.enter_context(provider(servers.folder))
        loom, node = stack.enter_context(_site(servers, variables))
        _wait_for([submit_task(worker, {"n": -1}, loom=loom)])
        process = psutil.Process(node.process.pid)
        before, spent = process.memory_info().rss, sum(process.cpu_times()[:2])
        handles = [submit_task(worker, {"n": number}, loom=loom) for number in range(count)]
        _wait_for(handles)
        begun, ended = loom.database.call(
            "SELECT extract(epoch FROM min(started_at))::float8, extract(epoch FROM max(ended_at))::float8"
            " FROM stages WHERE goal_id >= %(first)s",
            {"first": handles[0].goal_id},
        )[0]
        half = count // 2
        (later,) = loom.database.call(
            "SELECT extract(epoch FROM max(ended_at) - min(ended_at))::float8 FROM ("
            "SELECT ended_at FROM stages WHERE goal_id >= %(first)s ORDER BY ended_at OFFSET %(half)s) AS x",
            {"first": handles[0].goal_id, "half": half},
        )[0]
        grown, spent = process.memory_info().rss - before, sum(process.cpu_times()[:2]) - spent
        most = loom.database.call(
            "SELECT max(n) FROM (SELECT (SELECT count(*) FROM stages o WHERE o.started_at <= s.started_at"
            " AND o.ended_at > s.started_at AND o.goal_id >= %(first)s) AS n FROM stages s"
            " WHERE s.goal_id >= %(first)s ORDER BY s.started_at LIMIT 500) AS x",
            {"first": handles[0].goal_id},
        )[0][0]
    return {
        "part": f"{worker}: {count} tasks of {rounds} calls, one node with -P threads -c {_SLOTS}",
        **_figures(count, rounds, ended - begun),
        "second_half_of_ideal": round((count - half) * rounds * _LATENCY_S / _SLOTS / later, 3) if later else None,
        "most_at_once": most,
        "cpu_ms_a_task": round(1000 * spent / count, 2),
        "memory_grown_mb": round(grown / 2**20, 1),
    }


def _figures(count: int, rounds: int, took_s: float) -> dict[str, Any]:
    ideal_s = count * rounds * _LATENCY_S / _SLOTS
    return {
        "calls_a_second": round(count * rounds / took_s, 1),
        "took_s": round(took_s, 2),
        "ideal_s": round(ideal_s, 2),
        "of_ideal": round(ideal_s / took_s, 3),
        "aim": ">= 0.9",
    }


@contextmanager
def _site(servers: Servers, variables: dict[str, str]) -> Iterator[tuple[Loom, Node]]:
    """Start one node with a hundred threads."""
    with ExitStack() as stack:
        folder = servers.folder / f"project-{uuid7().hex}"
        (folder / "workers").mkdir(parents=True)
        (folder / "tools_of_bench.py").write_text(_TOOLS.lstrip())
        for name, said in _WORKERS.items():
            (folder / "workers" / f"{name}.yaml").write_text(f"name: {name}\n{said}")
        given = {**servers.given, "project": folder, "import_allow": "tools_of_bench", "redact_outputs": True}
        around = {
            **environment(), **variables, **{f"LOOMQ_{key.upper()}": str(value) for key, value in given.items()},
        }  # fmt: skip
        loom = Loom(Settings.load(**given))
        stack.callback(loom.close)
        options = ("-P", "threads", "-c", str(_SLOTS))
        node = Node(folder / "node.log", "-A", "loomq", cwd=folder, environment=around, pool=options)
        stack.callback(node.stop)
        stack.callback(node.process.terminate)
        wait_until(lambda: len(inspect.live_nodes(loom)) == 1, "the node", 60)
        yield loom, node


def _wait_for(handles: list[Any]) -> None:
    until = time.monotonic() + _PATIENCE_S
    for handle in handles:
        handle.result(timeout=max(until - time.monotonic(), 1), every_s=0.2)


def measured(parts: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Measure what was asked for, and give its lines."""
    works = {
        "calls": lambda servers: calls(servers, count),
        "tasks": lambda servers: tasks(servers, count),
        "conversations": lambda servers: tasks(servers, max(count // _ROUNDS, 1), "talk", _ROUNDS),
        "batch": lambda servers: tasks(servers, count, "join"),
    }
    for part in parts:
        with open_servers() as servers:
            yield works[part](servers)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (%(default)s)")
    parser.add_argument("--calls", type=int, default=3000, metavar="N", help="of each part (%(default)s)")
    given = parser.parse_args()
    for line in measured(given.parts.split(","), given.calls):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
