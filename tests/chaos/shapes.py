"""The goals of a storm: four DAGs whose outputs tell a wrong or missing input, and the project that runs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {"chain": CHAIN, "diamond": DIAMOND, "fan": FAN, "ladder": LADDER}

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
        note(payload, "start")
        seen = json.dumps([payload["stage"], payload["n"], sorted(payload.get("inputs", {}).items())])
        digest = hashlib.sha256(seen.encode()).digest()
        time.sleep(0.04 + digest[0] / 1500)
        swallow(payload)
        note(payload, "finish")
        return {"output": {"value": int.from_bytes(digest[:6], "big")}}
'''


def value_of(stage: str, n: int, inputs: dict[str, int]) -> int:
    """Compute what a stage gives, as the worker does."""
    seen = json.dumps([stage, n, sorted(inputs.items())])
    return int.from_bytes(hashlib.sha256(seen.encode()).digest()[:6], "big")


def expected(shape: str, n: int) -> dict[str, int]:
    """Compute the value of each stage of goal ``n``; parents stand before their children in each shape."""
    values: dict[str, int] = {}
    for stage, parents in SHAPES[shape].items():
        values[stage] = value_of(stage, n, {parent: values[parent] for parent in parents})
    return values


def write_project(folder: Path) -> None:
    """Write the YAML and the Python that all goals of a storm run from."""
    for name in ("workers", "pipelines", "mine"):
        (folder / name).mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "work.py").write_text(_BACKEND.lstrip())
    for worker in WORKERS:
        (folder / "workers" / f"{worker}.yaml").write_text(
            f"name: {worker}\nworker_kind: processor\nprocessing_backend: mine.work.Backend\n"
        )
    for shape, graph in SHAPES.items():
        lines = [f"name: {shape}", "pipeline_stages:"]
        for stage, parents in graph.items():
            # Optional, so that loomq itself would not notice a stage that runs before its parents: the ledger has to.
            mapping = {
                "goal": "goal.goal_id",
                "stage": f"'{stage}'",
                "n": "goal.context.n",
                "poison": "goal.context.poison?",
                **({"inputs": {parent: f"{parent}.output.value?" for parent in parents}} if parents else {}),
            }
            worker = "join" if len(parents) > 1 else "step"
            lines.append(
                f"  - {json.dumps({'name': stage, 'worker_type': worker, 'input_mapping': mapping}, sort_keys=False)}"
            )
        (folder / "pipelines" / f"{shape}.yaml").write_text("\n".join(lines) + "\n")
