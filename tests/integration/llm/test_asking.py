"""One call to a tier: short waits here, long ones elsewhere, the models that stand in, and which fault is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from loomq.errors import ConfigError, LLMError, LLMRateLimitError, LLMRefusedError, LLMUnavailableError
from loomq.llm.asking import MAX_TRIES, Asker
from loomq.llm.base import LLMMessage, LLMRequest
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm

WIRES = ["anthropic", "openai", "ollama"]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]}


def request(**more):
    plain = {"messages": (LLMMessage(role="user", content="hi"),), "max_output_tokens": 50, "timeout_s": 10}
    return LLMRequest(**{**plain, **more})


def ask(server, wire="openai", *, tier="standard", on_text=None, times=1, **said):
    more = {key: said.pop(key) for key in ("output_schema", "timeout_s") if key in said}

    async def go():
        pool = HttpPool()
        asker = Asker(Tiers(pool, LLMSettings({**server.environment(wire), **said})))
        try:
            return [await asker.ask(request(**more), tier, on_text=on_text) for _ in range(times)][-1]
        finally:
            await pool.aclose()

    return asyncio.run(go())


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "rule",
    [
        {"status": 429, "retry_after": 0.2},
        {"status": 529},
        {"status": 503},
        {"fault": "cut", "text": "x" * 99},
        {"fault": "malformed", "text": "x" * 99},
    ],
)
def test_what_passes_soon_is_waited_out(wire, rule):
    with fake_llm([{**rule, "times": MAX_TRIES - 1}, {"text": "ok"}]) as server:
        assert ask(server, wire).content == "ok"
        assert len(server.journal) == MAX_TRIES


def test_the_provider_s_wait_is_kept():
    with fake_llm([{"status": 429, "retry_after": 0.7, "times": 1}, {"text": "ok"}]) as server:
        begun = time.monotonic()
        ask(server)
        assert time.monotonic() - begun >= 0.7


def test_a_long_wait_is_left_to_the_queue():
    with fake_llm([{"status": 429, "retry_after": 30}]) as server:
        with pytest.raises(LLMRateLimitError) as caught:
            ask(server)
        assert (caught.value.retry_after_s, len(server.journal)) == (30, 1)


def test_a_storm_is_left_to_the_queue_after_some_tries():
    with fake_llm([{"status": 429}]) as server:
        with pytest.raises(LLMRateLimitError):
            ask(server)
        assert len(server.journal) == MAX_TRIES


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"status": 401}, "auth"),
        ({"status": 403}, "auth"),
        ({"status": 402}, "quota"),
        ({"status": 429, "code": "insufficient_quota"}, "quota"),
        ({"status": 400, "message": "maximum context length is 10"}, "context_overflow"),
        ({"status": 413}, "context_overflow"),
        ({"status": 400, "code": "content_filter"}, "content_filter"),
        ({"status": 400, "message": "no"}, "request"),
        ({"status": 404}, "request"),
        ({"fault": "refusal"}, "refusal"),
    ],
)
def test_what_no_wait_mends_is_told_at_once_by_its_kind(rule, kind):
    with fake_llm([rule]) as server:
        with pytest.raises(LLMError) as caught:
            ask(server)
        assert (caught.value.kind, caught.value.retryable, len(server.journal)) == (kind, False, 1)
        assert caught.value.to_json()["kind"] == kind


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"status": 429, "retry_after": 30}, "rate_limit"),
        ({"status": 529}, "overloaded"),
        ({"status": 503}, "overloaded"),
        ({"status": 504}, "timeout"),
        ({"status": 500}, "server"),
        ({"fault": "cut", "text": "x" * 99}, "connection"),
        ({"fault": "malformed", "text": "x" * 99}, "malformed"),
    ],
)
def test_what_may_pass_is_told_by_its_kind(rule, kind):
    with fake_llm([rule]) as server, pytest.raises(LLMError) as caught:
        ask(server, "anthropic")
    assert (caught.value.kind, caught.value.retryable) == (kind, True)


# Fallbacks


FALLBACKS = {"STANDARD_FALLBACKS": "fake-large, ollama/third"}
MODELS = ["fake-small", "fake-large", "third"]


@pytest.mark.parametrize(
    "rule", [{"status": 401}, {"status": 404}, {"status": 429, "retry_after": 30}, {"status": 529}, {"status": 413}]
)
def test_the_next_model_is_asked_when_one_fails(rule):
    rules = [{"model": "fake-small", **rule}, {"text": "ok"}]
    with fake_llm(rules, models=MODELS) as server:
        found = ask(server, **FALLBACKS)
        assert (found.content, found.model, found.provider) == ("ok", "fake-large", "openai-compatible")


def test_the_models_stand_in_in_their_order_over_several_providers():
    rules = [{"model": "fake-small", "status": 500}, {"model": "fake-large", "status": 401}, {"text": "ok"}]
    with fake_llm(rules, models=MODELS) as server:
        found = ask(server, **FALLBACKS)
        assert (found.model, found.provider) == ("third", "ollama")
        assert [entry.wire for entry in server.journal] == ["openai"] * (MAX_TRIES + 1) + ["ollama"]


def test_a_model_that_hangs_leaves_time_for_those_that_stand_in():
    rules = [{"model": "fake-small", "fault": "hang"}, {"model": "fake-large", "fault": "hang"}, {"text": "ok"}]
    with fake_llm(rules, models=MODELS) as server:
        assert ask(server, **FALLBACKS, timeout_s=3).model == "third"
        assert [entry.body["model"] for entry in server.journal] == MODELS


def test_a_tier_s_time_limit_is_one_call_s():
    rules = [{"fault": "hang", "times": 1}, {"text": "ok"}]
    with fake_llm(rules, models=MODELS) as server:
        begun = time.monotonic()
        assert ask(server, **FALLBACKS, STANDARD_TIMEOUT_SECONDS="0.5", timeout_s=60).model == "fake-large"
        assert time.monotonic() - begun < 10


def test_a_refusal_is_an_answer_and_nobody_else_is_asked():
    with fake_llm([{"fault": "refusal"}], models=MODELS) as server:
        with pytest.raises(LLMRefusedError):
            ask(server, **FALLBACKS)
        assert len(server.journal) == 1


def test_when_all_fail_the_fault_is_told_that_passes_first():
    rules = [
        {"model": "fake-small", "status": 429, "retry_after": 60},
        {"model": "fake-large", "status": 401},
        {"model": "third", "status": 429, "retry_after": 5},
    ]
    with fake_llm(rules, models=MODELS) as server, pytest.raises(LLMRateLimitError) as caught:
        ask(server, **FALLBACKS)
    assert caught.value.retry_after_s == 5


def test_when_none_can_pass_the_first_fault_is_told():
    rules = [{"model": "fake-small", "status": 401, "message": "first"}, {"status": 400, "message": "other"}]
    with fake_llm(rules, models=MODELS) as server, pytest.raises(LLMError, match="first"):
        ask(server, **FALLBACKS)


@pytest.mark.parametrize("said", ["openai/", "nosuch/model/"])
def test_a_fallback_that_names_no_model_or_one_with_slashes(said):
    with fake_llm([{"text": "ok"}], models=["fake-small", "nosuch/model/"]) as server:
        if said == "openai/":
            with pytest.raises(ConfigError, match="STANDARD_FALLBACKS names no model"):
                ask(server, STANDARD_FALLBACKS=said)
        else:
            assert ask(server, STANDARD_FALLBACKS=said).content == "ok"


# Settings of tiers


def test_each_tier_has_a_time_limit_of_its_own():
    with fake_llm([{"fault": "hang"}]) as server:
        found = Tiers(HttpPool(), LLMSettings({**server.environment("openai"), "LOCAL_TIMEOUT_SECONDS": "0.5"}))
        assert (found.timeout_s("local"), found.timeout_s("standard")) == (0.5, None)


@pytest.mark.parametrize("said", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_limit_that_is_none_names_its_variable(said):
    found = Tiers(HttpPool(), LLMSettings({"LOCAL_TIMEOUT_SECONDS": said}))
    with pytest.raises(ConfigError, match="LOCAL_TIMEOUT_SECONDS is no number of seconds"):
        found.timeout_s("local")


# Structured output


@pytest.mark.parametrize(
    ("wire", "key"), [("anthropic", "output_config"), ("openai", "response_format"), ("ollama", "format")]
)
def test_the_contract_is_told_in_the_provider_s_own_way(wire, key):
    with fake_llm([{"json": {"a": 1}}]) as server:
        ask(server, wire, output_schema=SCHEMA)
        assert key in server.journal[0].body
        ask(server, wire)
        assert key not in server.journal[1].body
        ask(server, wire, output_schema=SCHEMA, STRUCTURED_OUTPUT="off")
        assert key not in server.journal[2].body


def test_a_server_that_takes_no_schema_is_asked_without_one_from_then_on():
    def answer(call):
        if "response_format" in call.body:
            return {"status": 400, "message": "Unrecognized request argument supplied: response_format"}
        return {"json": {"a": 1}}

    from loomq.llm.fake_server.rules import as_rule

    with fake_llm([lambda call: as_rule(answer(call))]) as server:
        assert ask(server, output_schema=SCHEMA, times=2).content == '{"a": 1}'
        assert ["response_format" in entry.body for entry in server.journal] == [True, False, False]


def test_structured_output_is_on_or_off():
    with fake_llm() as server, pytest.raises(ConfigError, match="STRUCTURED_OUTPUT cannot be"):
        ask(server, output_schema=SCHEMA, STRUCTURED_OUTPUT="maybe")


def test_a_server_that_is_out_of_reach_lets_the_fallback_answer():
    with fake_llm([{"text": "ok"}], models=MODELS) as server:
        found = ask(
            server, STANDARD_BACKEND="ollama", OLLAMA_URL="http://127.0.0.1:9", STANDARD_FALLBACKS="openai/third"
        )
        assert found.content == "ok"
        with pytest.raises(LLMUnavailableError):
            ask(server, STANDARD_BACKEND="ollama", OLLAMA_URL="http://127.0.0.1:9")
