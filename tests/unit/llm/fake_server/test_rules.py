"""Which rule answers which call."""

from __future__ import annotations

import pytest

from loomq.errors import ConfigError
from loomq.llm.fake_server.rules import Rule, Rules, load_rules
from loomq.llm.fake_server.wire import Call, ToolUse


def call(text="a cat sat", wire="openai", model="m", max_tokens=None, stream=False, **more):
    return Call(wire, model, "", text, text, max_tokens, None, stream, {}, **more)


def test_the_first_rule_that_fits_answers():
    rules = Rules([{"contains": "dog", "text": "1"}, {"matches": "c.t", "text": "2"}, {"text": "3"}])
    assert rules.find(call())[0].text == "2"
    assert rules.find(call("a bird"))[0].text == "3"
    assert rules.find(call("dog"))[1] == 0


@pytest.mark.parametrize(
    ("said", "fits"),
    [({"wire": "openai"}, True), ({"wire": "ollama"}, False), ({"model": "m"}, True), ({"model": "n"}, False)],
)
def test_a_rule_may_look_at_wire_and_model(said, fits):
    assert (Rules([{**said, "text": "x"}]).find(call()) is not None) == fits


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ({"tool_results": 1}, {"tool_results": 1}),
        ({"tool_results": 0}, {}),
        ({"offers": "look_up"}, {"tools": ("stop", "look_up")}),
        ({"streams": True}, {"stream": True}),
        ({"streams": False}, {}),
        ({"kind": "embed", "status": 500}, {"kind": "embed"}),
    ],
)
def test_a_rule_may_look_at_tools_streams_and_kind(said, more):
    rules = Rules([{"text": "x", **said} if "status" not in said else said])
    other = {"tool_results": 2, "stream": not said.get("streams"), "kind": "chat"}
    assert rules.find(call(**more)) is not None
    assert rules.find(call(**other)) is None


def test_embeddings_need_no_rule_and_heed_none_for_chats():
    rules = Rules([{"status": 500}])
    assert rules.find(call(kind="embed")) == (Rule(), None)
    assert rules.find(call())[1] == 0


def test_a_rule_is_used_up_after_its_times():
    rules = Rules([{"status": 500, "times": 2}, {"text": "ok"}])
    assert [rules.find(call())[1] for _ in range(4)] == [0, 0, 1, 1]


def test_a_rule_that_does_not_fit_is_not_used_up():
    rules = Rules([{"contains": "dog", "text": "x", "times": 1}])
    assert rules.find(call()) is None
    assert rules.find(call("dog")) is not None


def test_a_function_is_a_rule():
    rules = Rules(
        [
            lambda call: "text" if "cat" in call.text else None,
            lambda call: {"a": 1} if "dog" in call.text else None,
            lambda call: Rule(status=503),
        ]
    )
    assert rules.find(call())[0].text == "text"
    assert rules.find(call("dog"))[0].answer_json == {"a": 1}
    assert rules.find(call("x"))[0].status == 503


def test_without_rules_the_prompt_comes_back():
    rule, number = Rules().find(call("hello"))
    assert (rule.answer(call("hello"), "m").text, number) == ('{"echo": "hello"}', None)


def test_an_answer_longer_than_was_asked_for_is_cut():
    found = Rule(text="x" * 100).answer(call(max_tokens=5), "m")
    assert (found.text, found.completion_tokens, found.stop) == ("x" * 20, 5, "length")
    assert Rule(text="x" * 100).answer(call(max_tokens=25), "m").stop == "end"


def test_a_truncated_answer_is_half_of_it():
    found = Rule(text="x" * 100, fault="truncated").answer(call(), "m")
    assert (found.text, found.stop) == ("x" * 48, "length")


def test_text_may_stand_beside_tool_calls():
    found = Rule(text="See.", tool_calls=[{"name": "look_up", "arguments": {"a": 1}}]).answer(call(), "m")
    assert (found.text, found.tool_calls, found.stop) == ("See.", (ToolUse("look_up", {"a": 1}),), "tools")
    assert found.completion_tokens == 1 + 4


def test_a_rule_says_how_the_answer_ends_and_what_was_cached():
    assert Rule(text="a", stop="pause").answer(call(), "m").stop == "pause"
    assert Rule(tool_calls=[{"name": "a"}], stop="length").answer(call(), "m").stop == "length"
    found = Rule(text="a", prompt_tokens=5, cached_tokens=9, thinking="Well, well.").answer(call(), "m")
    assert (found.cached_tokens, found.completion_tokens) == (5, 1 + 3)


def test_a_tool_call_has_its_own_id_in_the_answer_and_in_the_conversation():
    here = [call().tool_id("call_", number) for number in range(3)]
    assert here == [call().tool_id("call_", number) for number in range(3)]
    assert len({*here, call(tool_results=1).tool_id("call_", 0), call("a dog").tool_id("call_", 0)}) == 5


@pytest.mark.parametrize(
    "said",
    [
        {"text": "a", "json": {}},
        {"json": {}, "tool_calls": [{"name": "a"}]},
        {"text": "a", "tool_calls": [{"name": "a"}], "status": 500},
        {"stop": "end", "status": 500},
        {"stop": "end", "fault": "refusal"},
        {"stop": "never"},
        {"tool_results": -1},
        {"streams": "yes"},
        {"kind": "embed", "text": "a"},
        {"kind": "embed", "fault": "stream_error"},
        {"text": "a", "status": 500},
        {"retry_after": 1},
        {"matches": "("},
        {"status": 200},
        {"fault": "explode"},
        {"contain": "x"},
    ],
)
def test_what_is_no_rule_is_refused(said):
    with pytest.raises(ConfigError, match="no rule"):
        Rules([said])


def test_rules_are_read_from_a_file(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("models: [one]\nrules:\n  - {contains: cat, json: {label: animal}, times: 1}\n  - {fault: hang}\n")
    found = load_rules(file)
    assert found.models == ("one",)
    assert found.rules[0].answer_json == {"label": "animal"}
    file.write_text("rules:\n  - {containz: cat}\n")
    with pytest.raises(ConfigError, match=r"rules.yaml:2:\d+.*did you mean"):
        load_rules(file)
