"""Goals of every shape that a canvas has; no two share a stage's name, and each output can be computed."""

from __future__ import annotations

from typing import Any

from celery import chain, chord

from loomq.queues.names import task_name

PARENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "line": {"l1": (), "l2": ("l1",), "l3": ("l2",)},
    "diamond": {"d1": (), "d2": ("d1",), "d3": ("d1",), "d4": ("d2", "d3")},
    "wide": {"w1": (), "w2": (), "w3": (), "w4": ("w1", "w2", "w3")},
    "ragged": {"r1": (), "r2": (), "r3": ("r1",), "r4": ("r1", "r2")},  # not series-parallel: no canvas holds it
    "flaky": {"f1": (), "f2": ("f1",)},  # each stage fails once
}
RAW: dict[str, dict[str, tuple[str, ...]]] = {  # a user's own Celery canvases: each call is a goal of its own
    "raw_chain": {"c1": (), "c2": ("c1",), "c3": ("c2",)},
    "raw_chord": {"x1": (), "x2": (), "x3": ("x1", "x2")},
}
EVERY = {name: parents for shape in (PARENTS | RAW).values() for name, parents in shape.items()}
LEAVES = {name for name in EVERY if not any(name in parents for parents in EVERY.values())}
ROOTS = {name for name, parents in EVERY.items() if not parents}
JOINS = {name for shape in PARENTS.values() for name, parents in shape.items() if len(parents) > 1}

# Counts completions in the database itself, whoever made them.
LOG_ENDS = """
CREATE TABLE ends (goal_id uuid, name text);
CREATE FUNCTION log_end() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO ends VALUES (new.goal_id, new.name); RETURN NULL; END $$;
CREATE TRIGGER log_end AFTER UPDATE ON stages FOR EACH ROW
    WHEN (new.state = 'done' AND old.state <> 'done') EXECUTE FUNCTION log_end();
"""
_ADD = """
given = [item["n"] for item in payload["items"]] if "items" in payload else payload.values()
return {"output": {"n": 1 + sum(given)}}
"""
_FAIL_ONCE = """
flag = Path("flags", payload.pop("goal") + payload.pop("stage"))
if not flag.exists():
    flag.parent.mkdir(exist_ok=True)
    flag.touch()
    raise TransientBackendError("not yet")
"""


def write(project: Any) -> None:
    """Write the project's workers and pipelines."""
    project.worker("add", _ADD)
    project.worker("fail_once", _FAIL_ONCE + _ADD, retry_backoff="{initial: 0.05}")
    for shape in RAW.values():
        for name in shape:
            project.worker(name, _ADD)
    for name, stages in PARENTS.items():
        project.pipeline(name, "\n".join(_stage(name, stage, parents) for stage, parents in stages.items()))


def _stage(shape: str, name: str, parents: tuple[str, ...]) -> str:
    reads = {parent: f"{parent}.output.n" for parent in parents} or {"n": "goal.context.n"}
    if shape == "flaky":
        reads |= {"goal": "goal.goal_id", "stage": f"\"'{name}'\""}
    mapping = ", ".join(f"{key}: {value}" for key, value in reads.items())
    worker = "fail_once" if shape == "flaky" else "add"
    return f"  - {{name: {name}, worker_type: {worker}, input_mapping: {{{mapping}}}}}"


def expected(name: str, given: int) -> int:
    """Compute what a stage gives if everything above it ran as it should."""
    return 1 + (sum(expected(parent, given) for parent in EVERY[name]) or given)


def canvas(app: Any, shape: str, key: str, given: int) -> Any:
    """Make a user's canvas whose ids follow from ``key``, so that sending it again is the same call again."""

    def call(name: str, *payload: Any) -> Any:
        return app.signature(task_name(name), args=payload, options={"task_id": f"{key}-{name}"})

    if shape == "raw_chain":
        return chain(call("c1", {"n": given}), call("c2"), call("c3"))
    found = chord([call("x1", {"n": given}), call("x2", {"n": given})], call("x3"), app=app)
    found.options["task_id"] = f"{key}-group"
    return found
