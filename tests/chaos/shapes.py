"""The goals of a storm: DAGs whose outputs tell a wrong or missing input, and the project that runs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHAIN = {f"s{at}": (f"s{at - 1}",) if at else () for at in range(6)}
DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
PARTS = tuple(f"p{at:02}" for at in range(12))
FAN = {"split": (), **dict.fromkeys(PARTS, ("split",)), "join": PARTS}
# A diamond, and below it an N: v waits for both sides, u for one.
LADDER = {
    "a": (),
    "b": ("a",),
    "c": ("a",),
    "d": ("b", "c"),
    "x": ("d",),
    "y": ("d",),
    "u": ("x",),
    "v": ("x", "y"),
    "end": ("u", "v"),
}
# One side is skipped, and what follows on it; what is below both can do without.
ASKING = {"a": (), "yes": ("a",), "no": ("a",), "after": ("no",), "b": (), "end": ("yes", "after", "b")}
CONDITIONS = {"yes": "a.output.value >= 0", "no": "a.output.value < 0", "after": "no.output.value exists"}
SKIPPED = {"no", "after"}
ITEMS = tuple(f"each:{at}" for at in range(6))
EACH = {"list": (), "each": ("list",), "sum": ("each",)}
PIPELINES = {"chain": CHAIN, "diamond": DIAMOND, "fan": FAN, "ladder": LADDER, "asking": ASKING, "each": EACH}
# What really works, and after whom: an item is a stage of its own here, one that is skipped is none.
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    **PIPELINES,
    "asking": {"a": (), "yes": ("a",), "b": (), "end": ("yes", "b")},
    "each": {"list": (), **dict.fromkeys(ITEMS, ("list",)), "sum": ITEMS},
}

WORKERS = ("step", "join")
LEDGER = "CHAOS_LEDGER"

_BACKEND = '''
"""A worker that says what it does, outside of loomq, and computes a value from all of its inputs."""

import hashlib, json, os, signal, time
from loomq.workers.base import SyncProcessingBackend

FOLDER = os.environ["CHAOS_LEDGER"]


def note(payload, what):
    line = f"{payload['goal']} {payload['stage']} {what} {time.time():.6f} {os.getpid()}\\n"
    out = os.open(os.path.join(FOLDER, "effects"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, line.encode())
    os.close(out)


def swallow(payload):
    """Die of the poison, the first so many times."""
    poison = payload.get("poison") or {}
    for dose in range(poison.get("doses", 0) if poison.get("stage") == payload["stage"] else 0):
        try:
            mark = f"poison-{payload['goal']}-{dose}"
            os.close(os.open(os.path.join(FOLDER, mark), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        note(payload, "poison")
        os.kill(os.getpid(), signal.SIGKILL)


class Backend(SyncProcessingBackend):
    def process_sync(self, payload, config):
        if "index" in payload:
            payload["stage"] += f":{payload['index']}"
        note(payload, "start")
        seen = json.dumps([payload["stage"], payload["n"], sorted(payload.get("inputs", {}).items())])
        digest = hashlib.sha256(seen.encode()).digest()
        time.sleep(0.04 + digest[0] / 1500)
        swallow(payload)
        note(payload, "finish")
        return {"output": {"value": int.from_bytes(digest[:6], "big")}}
'''


def value_of(stage: str, n: int, inputs: dict[str, Any]) -> int:
    """Compute what a stage gives, as the worker does."""
    seen = json.dumps([stage, n, sorted(inputs.items())])
    return int.from_bytes(hashlib.sha256(seen.encode()).digest()[:6], "big")


def expected(shape: str, n: int) -> dict[str, int]:
    """Compute the value of each stage of goal ``n``; parents stand before their children in each shape."""
    values: dict[str, int] = {}
    for stage, parents in SHAPES[shape].items():
        inputs: dict[str, Any] = {parent: values[parent] for parent in parents}
        if parents == ITEMS:
            inputs = {"each": [{"value": values[item]} for item in ITEMS]}
        values[stage] = value_of(stage, n, inputs)
    return values


def write_project(folder: Path, *, limited: bool = False) -> None:
    """Write the YAML and the Python that all goals of a storm run from.

    Args:
        limited: Under a rate and slots that are felt, and a key for each stage's name.
    """
    for name in ("workers", "pipelines", "mine"):
        (folder / name).mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "work.py").write_text(_BACKEND.lstrip())
    for worker in WORKERS:
        (folder / "workers" / f"{worker}.yaml").write_text(
            f"name: {worker}\nworker_kind: processor\nprocessing_backend: mine.work.Backend\n"
            + ("concurrency_key: payload.stage\nmax_concurrent: 2\n" if limited and worker == "step" else "")
        )
    if limited:
        (folder / "deploy").mkdir()
        rules = {"rate_limits": {"local": {"rate": "100/s", "burst": 50, "max_concurrent": 4}}}
        (folder / "deploy" / "router_rules.yaml").write_text(json.dumps(rules))
    for shape, graph in PIPELINES.items():
        lines = [f"name: {shape}", "pipeline_stages:"]
        lines += [f"  - {json.dumps(_stage(name, parents))}" for name, parents in graph.items()]
        (folder / "pipelines" / f"{shape}.yaml").write_text("\n".join(lines) + "\n")


def _stage(name: str, parents: tuple[str, ...]) -> dict[str, Any]:
    # Optional, so that loomq itself would not notice a stage that runs before its parents: the ledger has to.
    inputs = {parent: f"{parent}.output.{'items' if parent == 'each' else 'value'}?" for parent in parents}
    mapping: dict[str, Any] = {
        "goal": "goal.goal_id",
        "stage": f"'{name}'",
        "n": "goal.context.n",
        "poison": "goal.context.poison?",
        **({"inputs": inputs} if parents else {}),
    }
    more: dict[str, Any] = {"condition": CONDITIONS[name]} if name in CONDITIONS else {}
    if name == "each":
        mapping["index"] = "index"
        more = {"for_each": f"goal.context.items? | default({json.dumps([0] * len(ITEMS))})", "max_parallel": 4}
    return {"name": name, "worker_type": "join" if len(parents) > 1 else "step", "input_mapping": mapping, **more}
