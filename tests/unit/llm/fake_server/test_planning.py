"""The stand-in that plans without a model: what it asks whom, and how it concludes."""

from __future__ import annotations

import json

import pytest

from loomq.contracts import Contract
from loomq.llm.fake_server import planning
from loomq.llm.fake_server.wire import Call
from loomq.orchestrator import prompt
from loomq.orchestrator.history import TaskRecord, told, written
from loomq.orchestrator.manifest import Frozen, Offer
from loomq.orchestrator.spec import OrchestratorSpec
from loomq.orchestrator.tasks import PlanReader


def schema(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
FROZEN = Frozen(
    spec=OrchestratorSpec(name="o"),
    offers=(
        Offer(name="asker", input_schema=schema(question=TEXT), output_keys=("answer",)),
        Offer(name="summer", input_schema=schema(text=TEXT), output_keys=("summary",)),
        Offer(name="adder", input_schema=schema(prices={"type": "array"})),
        Offer(name="odd", input_schema=schema(left=TEXT, right=TEXT)),
        Offer(name="free"),
    ),
)


def call(system, *parts, schema=None):
    messages = prompt.conversation([("user", part) for part in parts])
    text = "\n".join([system, *(message.content for message in messages)])
    return Call("openai", "m", system, messages[-1].content, text, 100, None, False, {}, schema=schema)


@pytest.mark.parametrize(
    ("context", "workers"),
    [
        ({}, ["asker", "summer"]),
        ({"prices": [1, 2]}, ["asker", "summer", "adder"]),
        ({"text": "A."}, ["asker", "summer"]),
    ],
)
def test_a_plan_gives_each_worker_what_it_takes_and_is_a_right_one(context, workers):
    goal = prompt.goal_text("What is it?", context)
    plan = json.loads(planning.answer(call(prompt.planning_system(FROZEN), goal, prompt.round_text(1, 3))))

    assert [task["worker_type"] for task in plan] == workers
    assert plan[0]["payload"] == {"question": "What is it?"}
    expected = {"text": "A."} if "text" in context else {"text": {"$from": "asker_1.output.answer"}}
    assert plan[1]["payload"] == expected
    reader = PlanReader(FROZEN)
    assert reader.read(plan, may_be_empty=False)
    assert reader.faults == []


def test_one_round_is_enough():
    goal = prompt.goal_text("What is it?", {})
    assert planning.answer(call(prompt.planning_system(FROZEN), goal, prompt.round_text(2, 3))) == "[]"


@pytest.mark.parametrize("asked", [prompt.SYNTHESIS_SCHEMA, prompt.MINUTES_SCHEMA])
def test_a_conclusion_quotes_the_results_and_names_what_failed(asked):
    done = TaskRecord(
        "a", 1, "asker", "id", "done", {"answer": "The sea is blue and wide, and it is full of fish. It ends."}
    )
    lost = TaskRecord("b", 1, "asker", "id", "failed", error={"message": "no luck"})
    results = [f"Result: {written(told(record))}" for record in (done, lost)]
    found = json.loads(planning.answer(call("rules", prompt.goal_text("What?", {}), *results, "Go.", schema=asked)))

    assert Contract(asked).errors(found) == []
    assert "The sea is blue" in (found.get("synthesis") or found["executive_summary"])
    if "gaps" in found:
        assert (found["gaps"], found["confidence"]) == (["b: no luck"], "low")


def test_whatever_is_no_step_of_an_orchestrator_is_left_to_the_summarizer():
    assert planning.answer(call("Sum it up.", '{"text": "x"}')) is None
    assert planning.answer(call("Sum it up.", '{"text": "x"}', schema=schema(summary=TEXT))) is None
