"""The words that an orchestrator's model is told."""

from __future__ import annotations

import json

from loomq.orchestrator import prompt
from loomq.orchestrator.outline import Step, steps


def test_the_system_prompt_begins_with_the_orchestrator_s_own_and_offers_a_worker_a_line(frozen):
    system = prompt.planning_system(frozen)
    assert system.startswith("Mind the gap.\n\n")
    offers = [json.loads(line) for line in system.splitlines() if line.startswith("{")]
    assert [offer["worker_type"] for offer in offers] == ["look", "free", "boss"]
    assert offers[0]["model_tiers"] == ["local", "frontier"]
    assert "model_tiers" not in offers[1]
    assert '{"$from": "ID.output.KEY"}' in system


def test_braces_in_what_people_write_are_no_placeholders(frozen):
    odd = frozen.offers[0].model_copy(update={"description": "{offers} {0} %s"})
    system = prompt.planning_system(frozen.model_copy(update={"offers": (odd,)}))
    assert '"description": "{offers} {0} %s"' in system


def test_a_shape_tells_kinds_and_keys_and_no_values():
    context = {"b": [{"x": 1.5, "y": None}], "a": "secret", "c": [], "d": True}
    assert prompt.shape_of(context) == {
        "a": "text", "b": [{"x": "number", "y": "null"}], "c": [], "d": "boolean",
    }  # fmt: skip
    assert "secret" not in prompt.goal_text("go", context, shape_only=True)


def test_the_last_round_is_called_so():
    assert "up to 2 times" in prompt.round_text(1, 3)
    assert "ask for more" not in prompt.round_text(1, 1)
    assert "It is the last round" in prompt.round_text(3, 3)
    assert "It is the last round" not in prompt.round_text(2, 3)


def test_texts_of_one_side_are_one_turn():
    told = prompt.conversation([("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")])
    assert [(one.role, one.content) for one in told] == [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]


def test_the_outline_is_a_line_of_steps_whose_names_are_read_back():
    names = [step.name for step in steps(2)]
    assert names == ["plan_1", "tasks_1", "plan_2", "tasks_2", "synthesis"]
    assert [Step.of(name) for name in names] == steps(2)
    assert [step.above for step in steps(2)] == [None, "plan_1", "tasks_1", "plan_2", None]
    assert Step.of("plan_x") is None
