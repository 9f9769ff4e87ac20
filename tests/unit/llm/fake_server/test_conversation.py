"""Texts, prompts and rounds are found in messages of all three wires."""

from __future__ import annotations

from loomq.llm.fake_server.conversation import everything_in, prompt_of, rounds

USED = [{"type": "text", "text": "See."}, {"type": "tool_use", "id": "1", "name": "look_up", "input": {"word": "cat"}}]
RESULT = [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "an animal"}]}]
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "cat"}'}}


def test_calls_and_results_of_tools_are_texts_too():
    assert everything_in({"role": "assistant", "content": USED}) == 'See.\nlook_up {"word": "cat"}'
    assert everything_in({"role": "user", "content": RESULT}) == "an animal"
    assert everything_in({"role": "assistant", "content": None, "tool_calls": [CALL]}) == 'look_up {"word": "cat"}'
    asked = {"function": {"name": "look_up", "arguments": {"word": "cat"}}}
    assert everything_in({"role": "assistant", "content": "", "tool_calls": [asked]}) == 'look_up {"word": "cat"}'


def test_the_prompt_is_what_the_user_said_last_and_no_result():
    said = {"role": "user", "content": "What is a cat?"}
    assert prompt_of([said, {"role": "assistant", "content": USED}, {"role": "user", "content": RESULT}]) == (
        "What is a cat?"
    )
    assert prompt_of([]) == ""


def test_results_side_by_side_are_one_round():
    roles = ["user", "assistant", "tool", "tool", "assistant", "tool", "user"]
    assert rounds([{"role": role, "content": ""} for role in roles]) == 2
