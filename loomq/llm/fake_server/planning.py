"""What the extractive model does for orchestrators: plan by what workers take, and conclude by quoting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.extractive import LENGTH, METHOD, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.llm.fake_server.wire import Call

_QUESTIONS = ("question", "query", "instruction", "topic", "q")
_TEXTS = ("answer", "summary", "text", "synthesis", "content")
_GOAL, _RESULT = "The goal:", "Result: "


def answer(call: Call) -> str | None:
    """Answer an orchestrator's step; ``None`` if the call is none.

    A plan asks every worker that takes a question for the goal, and hands what the first one answers to every worker
    that takes a text. It is the first and only round.
    """
    offers = list(_offers(call.system))
    if offers:
        return json.dumps(_plan(call, offers) if "This is round " not in call.prompt else [])
    wanted = (call.schema or {}).get("properties", {})
    told = next((key for key in ("synthesis", "executive_summary") if key in wanted), None)
    if told is None:
        return None
    results = list(_lines(call.text, _RESULT))
    failed = [f"{one['task']}: {one['error']}" for one in results if isinstance(one, dict) and "error" in one]
    chosen = quoted([one.get("output") for one in results if isinstance(one, dict)], LENGTH)
    found: dict[str, Any] = {key: [] for key in wanted} | {told: " ".join(chosen) or METHOD}
    if "confidence" in wanted:
        found |= {"confidence": "low", "gaps": failed}
    return json.dumps(found, ensure_ascii=False)


def _plan(call: Call, offers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    goal = next((one for one in _lines(call.text, "", after=_GOAL) if isinstance(one, dict)), {})
    instruction = str(goal.get("instruction", ""))
    context = goal.get("context", {})
    tasks: list[dict[str, Any]] = []
    source: str | None = None
    for offer in offers:
        required = (offer.get("payload_schema") or {}).get("required", [])
        payload = {key: context[key] for key in required if key in context}
        missing = [key for key in required if key not in payload]
        task: dict[str, Any] = {"id": f"{offer['worker_type']}_1", "worker_type": offer["worker_type"]}
        if missing and missing[0] in _QUESTIONS and len(missing) == 1:
            payload[missing[0]] = instruction
        elif missing == ["text"] and source is not None:
            payload["text"] = {"$from": source}
            task["depends_on"] = [source.partition(".")[0]]
        elif missing or not required:
            continue
        tasks.append({**task, "payload": payload, "rationale": "it takes what the goal gives"})
        key = next((key for key in _TEXTS if key in offer.get("output_keys", ())), None)
        if source is None and key is not None:
            source = f"{task['id']}.output.{key}"
    return tasks


def _offers(system: str) -> Iterator[dict[str, Any]]:
    """Find the workers that a prompt offers, a JSON object a line."""
    for one in _lines(system, ""):
        if isinstance(one, dict) and "worker_type" in one:
            yield one


def _lines(text: str, mark: str, after: str = "") -> Iterator[Any]:
    """Read the lines that are JSON behind a mark."""
    lines = text[text.find(after) + len(after) :].splitlines() if after in text else []
    for line in lines:
        if line.startswith(f"{mark}{{"):
            try:
                yield json.loads(line[len(mark) :])
            except ValueError:
                continue
