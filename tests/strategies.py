"""Hypothesis strategies for what loomq reads: names, JSON, mappings, worker and pipeline files, DAGs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name not in ("goal", "item", "index"))
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=5)
TIERS = st.sampled_from(["local", "standard", "frontier"])
SECONDS = st.floats(0.001, 86_400, allow_nan=False) | st.integers(1, 86_400)

JSON_SCHEMAS = st.recursive(
    st.sampled_from([{"type": name} for name in ("string", "integer", "number", "boolean", "null", "object", "array")]),
    lambda inner: (
        st.builds(
            lambda properties, closed: {
                "type": "object",
                "properties": properties,
                **({"additionalProperties": False} if closed else {}),
            },
            st.dictionaries(KEYS, inner, max_size=3),
            st.booleans(),
        )
        | st.builds(lambda items: {"type": "array", "items": items}, inner)
    ),
    max_leaves=6,
)


def optional(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of some keys with values."""
    return st.fixed_dictionaries({}, optional=keys)


@st.composite
def worker_files(draw: st.DrawFn) -> dict[str, Any]:
    """What a valid worker file may say, unsupported keys included."""
    common = {
        "description": st.text(max_size=20),
        "input_schema": JSON_SCHEMAS,
        "output_schema": JSON_SCHEMAS,
        "timeout_seconds": SECONDS,
        "max_retries": st.integers(0, 20),
        "retry_backoff": optional({"initial": st.integers(0, 5), "max": st.integers(5, 99), "jitter": st.booleans()}),
        "reset_after_task": st.just(True),
        "workspace_dir": st.just("files"),
        "max_output_tokens": st.integers(1, 9999),
        "rate_limit": st.sampled_from(["10/m", "1/s", "0.5/h", "7"]),
        "x-note": JSON,
    }
    of_models = {
        "knowledge_sources": st.just([{"path": "guide.md", "inject_as": "few_shot", "required": False}]),
        "knowledge_silos": st.just(
            [
                {"name": "notes", "type": "folder", "path": "notes", "permissions": "read_write"},
                {"name": "find", "type": "tool", "provider": "a.B"},
            ]
        ),
        "tool_timeout_seconds": SECONDS,
        "stream": st.booleans(),
        "cache": st.just({"ttl_seconds": 60}),
    }
    said: dict[str, Any] = {"name": draw(NAMES), **draw(optional(common))}
    tier_key = draw(st.sampled_from(["default_model_tier", "default_tier", ""]))
    if tier_key:
        said[tier_key] = draw(TIERS)
    if draw(st.booleans()):
        processor = {"worker_kind": "processor", "processing_backend": "loomq.contrib.demo.Thing"}
        return {**said, **processor, "backend_config": draw(OBJECTS)}
    of_models = draw(optional(of_models))
    if not of_models.keys() & {"knowledge_silos", "stream"}:
        of_models |= draw(optional({"batch": st.just({"max_size": 8, "max_wait_ms": 20})}))
    return {**said, **of_models, "worker_kind": "llm", "system_prompt": "Do it."}


@st.composite
def dags(draw: st.DrawFn, max_stages: int = 12) -> dict[str, tuple[str, ...]]:
    """A random DAG as name -> parents, in an order that may put children before parents."""
    size = draw(st.integers(1, max_stages))
    names = [f"s{number}" for number in range(size)]
    parents: dict[str, tuple[str, ...]] = {}
    for at, name in enumerate(names):
        above = draw(st.sets(st.sampled_from(names[:at]), max_size=4)) if at else set()
        parents[name] = tuple(sorted(above))
    shuffled = draw(st.permutations(names))
    return {name: parents[name] for name in shuffled}


@st.composite
def pipeline_files(draw: st.DrawFn) -> dict[str, Any]:
    """What a valid pipeline file may say: a random DAG with mappings along its edges."""
    stages = []
    for name, parents in draw(dags(6)).items():
        mapping: dict[str, Any] = {f"from_{parent}": f"{parent}.output.value?" for parent in parents}
        mapping["text"] = draw(st.sampled_from(["goal.instruction", "goal.context.a.b[0]", "'it''s'", 3, True]))
        extra = {
            "tier": TIERS,
            "timeout_seconds": SECONDS,
            "max_retries": st.integers(0, 9),
            "priority": st.sampled_from(["low", "normal", "high", "critical"]),
            "depends_on": st.just(list(parents)),
            "output_schema": JSON_SCHEMAS,
            "condition": st.sampled_from(
                ["goal.context.a exists", "not (goal.context.n > 3 or goal.instruction == x)"]
            ),
            "for_each": st.sampled_from(["goal.context.items?", "goal.context.items | default([1])"]),
            "fallback": st.sampled_from([{"value": {"value": 1}}, {"worker_type": "worker", "tier": "local"}]),
            "x-note": JSON,
        }
        stages.append({"name": name, "worker_type": "worker", "input_mapping": mapping, **draw(optional(extra))})
    top = {"description": st.text(max_size=9), "timeout_seconds": SECONDS, "input_schema": JSON_SCHEMAS}
    return {"name": draw(NAMES), "pipeline_stages": stages, **draw(optional(top))}
