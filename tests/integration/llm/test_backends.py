"""Our adapters against the fake server: what they send, word for word, and what they make of every answer."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from loomq.errors import (
    LLMAnswerError,
    LLMError,
    LLMRateLimitError,
    LLMRefusedError,
    LLMUnavailableError,
)
from loomq.llm.base import LLMMessage, LLMReply, LLMRequest, StopReason
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm

WIRES = ["anthropic", "openai", "ollama"]
CANARY = "canary-4f1d0c9e7b"


def request(**more):
    said = {"system": "Classify.", "messages": (LLMMessage(role="user", content="a cat"),)}
    return LLMRequest(**{**said, "max_output_tokens": 99, "timeout_s": 5, **more})


def with_backend(server, wire, work, **variables):
    """Do some asynchronous work with the backend that a server's environment gives."""

    async def run():
        pool = HttpPool()
        try:
            settings = LLMSettings({**server.environment(wire, key=CANARY), **variables})
            return await work(Tiers(pool, settings).backend("standard"))
        finally:
            await pool.aclose()

    return asyncio.run(run())


def complete(server, wire, asked=None, **variables):
    return with_backend(server, wire, lambda backend: backend.complete(asked or request()), **variables)


SENT = {
    "anthropic": {
        "path": "/v1/messages",
        "headers": {"anthropic-version": "2026-10-21", "authorization": "***", "x-api-key": None},
        "body": {
            "model": "fake-small",
            "max_tokens": 99,
            "messages": [{"role": "user", "content": "a cat"}],
            "system": "Classify.",
        },
    },
    "openai": {
        "path": "/v1/chat/completions",
        "headers": {"authorization": "***"},
        "body": {
            "model": "fake-small",
            "messages": [{"role": "system", "content": "Classify."}, {"role": "user", "content": "a cat"}],
            "max_completion_tokens": 99,
        },
    },
    "ollama": {
        "path": "/api/chat",
        "headers": {"authorization": None},
        "body": {
            "model": "fake-small",
            "messages": [{"role": "system", "content": "Classify."}, {"role": "user", "content": "a cat"}],
            "stream": False,
            "options": {"num_predict": 99},
        },
    },
}


@pytest.mark.parametrize("wire", WIRES)
def test_the_request_is_this_and_nothing_more(wire):
    with fake_llm() as server:
        complete(server, wire)
        entry = server.journal[0]
    common = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
    assert (entry.method, entry.path, entry.body) == ("POST", SENT[wire]["path"], SENT[wire]["body"])
    assert {name: entry.headers.get(name) for name in SENT[wire]["headers"]} == SENT[wire]["headers"]
    assert {name: entry.headers.get(name) for name in common} == common
    assert entry.headers["user-agent"].startswith("loomq/")


def test_the_temperature_is_sent_when_it_is_set():
    with fake_llm() as server:
        complete(server, "openai", request(temperature=0.0))
        complete(server, "ollama", request(temperature=0.5))
        complete(server, "anthropic", request(temperature=1.0), ANTHROPIC_VERSION="2023-06-01")
        bodies = [entry.body for entry in server.journal]
        assert [body.get("temperature") for body in bodies] == [0.0, None, 1.0]
        assert bodies[1]["options"]["temperature"] == 0.5
        with pytest.raises(LLMError, match="temperature") as caught:
            complete(server, "anthropic", request(temperature=1.0))
        assert not caught.value.retryable


def test_the_old_version_takes_the_key_in_its_own_header():
    with fake_llm(keys=[CANARY]) as server:
        complete(server, "anthropic", ANTHROPIC_VERSION="2023-06-01")
        headers = server.journal[0].headers
        assert ("x-api-key" in headers, "authorization" in headers) == (True, False)


def test_an_older_server_gets_the_limit_by_its_old_name():
    with fake_llm() as server:
        complete(server, "openai", OPENAI_TOKENS_FIELD="max_tokens")
        assert server.journal[0].body["max_tokens"] == 99
        assert "max_completion_tokens" not in server.journal[0].body


@pytest.mark.parametrize("wire", WIRES)
def test_an_answer_is_read(wire):
    with fake_llm([{"json": {"label": "animal"}, "prompt_tokens": 11, "completion_tokens": 7}]) as server:
        assert complete(server, wire) == LLMReply(
            content='{"label": "animal"}',
            model="fake-small",
            prompt_tokens=11,
            completion_tokens=7,
            stop_reason=StopReason.END_TURN,
        )


@pytest.mark.parametrize("wire", WIRES)
def test_tool_calls_are_read(wire):
    calls = [{"name": "look_up", "arguments": {"word": "cat"}}, {"name": "stop"}]
    with fake_llm([{"tool_calls": calls}]) as server:
        found = complete(server, wire)
    assert found.stop_reason == StopReason.TOOL_USE
    assert [(call.name, call.arguments) for call in found.tool_calls] == [("look_up", {"word": "cat"}), ("stop", {})]
    assert len({call.id for call in found.tool_calls}) == 2


@pytest.mark.parametrize("wire", WIRES)
def test_a_cut_answer_says_so(wire):
    with fake_llm([{"text": "x" * 4000}]) as server:
        found = complete(server, wire)
    assert (found.stop_reason, found.content, found.completion_tokens) == (StopReason.MAX_TOKENS, "x" * 396, 99)


@pytest.mark.parametrize("wire", WIRES)
def test_the_models_are_listed(wire):
    names = [f"model-{number}" for number in range(30)]
    with fake_llm(models=names) as server:
        assert with_backend(server, wire, lambda backend: backend.list_models()) == names


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
def test_a_refusal_is_final(wire):
    with (
        fake_llm([{"fault": "refusal"}]) as server,
        pytest.raises(LLMRefusedError, match="refused to answer") as caught,
    ):
        complete(server, wire)
    assert not caught.value.retryable


STATUSES = [
    (400, LLMError, False),
    (401, LLMError, False),
    (402, LLMError, False),
    (403, LLMError, False),
    (404, LLMError, False),
    (413, LLMError, False),
    (422, LLMError, False),
    (408, LLMUnavailableError, True),
    (409, LLMUnavailableError, True),
    (429, LLMRateLimitError, True),
    (500, LLMUnavailableError, True),
    (503, LLMUnavailableError, True),
    (529, LLMUnavailableError, True),
]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("status", "kind", "retryable"), STATUSES)
def test_an_error_says_what_the_provider_said_and_whether_to_try_again(wire, status, kind, retryable):
    rule = {"status": status, "message": "the provider's words"}
    with fake_llm([rule]) as server, pytest.raises(LLMError) as caught:
        complete(server, wire)
    assert (type(caught.value), caught.value.retryable) == (kind, retryable)
    assert f"answered {status}: the provider's words" in caught.value.message


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_the_provider_asks_for_is_kept(wire, status):
    with fake_llm([{"status": status, "retry_after": 7}]) as server, pytest.raises(LLMError) as caught:
        complete(server, wire)
    assert caught.value.retry_after_s == 7


def test_an_account_without_money_is_not_asked_again():
    with fake_llm([{"status": 429, "code": "insufficient_quota"}]) as server, pytest.raises(LLMError) as caught:
        complete(server, "openai")
    assert not caught.value.retryable
    assert "no credit" in caught.value.hint


@pytest.mark.parametrize(
    ("wire", "rule", "hint"),
    [
        ("anthropic", {"status": 401}, "check ANTHROPIC_API_KEY"),
        ("openai", {"status": 403}, "check OPENAI_API_KEY"),
        ("ollama", {"status": 404}, "loomq doctor"),
        ("anthropic", {"status": 400, "message": "prompt is too long: 300000 tokens > 200000 maximum"}, "send less"),
        ("openai", {"status": 400, "code": "context_length_exceeded"}, "send less"),
        ("anthropic", {"status": 413}, "send less"),
    ],
)
def test_the_way_out_is_hinted_at(wire, rule, hint):
    with fake_llm([rule]) as server, pytest.raises(LLMError) as caught:
        complete(server, wire)
    assert hint in caught.value.hint


@pytest.mark.parametrize("wire", WIRES)
def test_a_malformed_response_is_quoted(wire):
    rule = {"text": "hello", "fault": "malformed"}
    with fake_llm([rule]) as server, pytest.raises(LLMAnswerError, match=r"malformed .*it begins: \{") as caught:
        complete(server, wire)
    assert caught.value.retryable


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("rule", [{"text": "x" * 500, "fault": "cut"}, {"fault": "hang"}, {"delay_seconds": 30}])
def test_a_connection_that_ends_or_hangs_is_worth_another_try(wire, rule):
    with fake_llm([rule]) as server, pytest.raises(LLMUnavailableError):
        complete(server, wire, request(timeout_s=0.5))


@pytest.mark.parametrize("wire", WIRES)
def test_nobody_there_is_worth_another_try(wire):
    with fake_llm() as server:
        pass
    with pytest.raises(LLMUnavailableError, match="out of reach"):
        complete(server, wire)


@pytest.mark.parametrize("wire", WIRES)
def test_connections_are_kept(wire):
    async def ask(backend):
        for _ in range(3):
            await backend.complete(request())

    with fake_llm() as server:
        with_backend(server, wire, ask)
        assert server._http.accepted == 1


def test_many_calls_run_side_by_side():
    async def ask(backend):
        return await asyncio.gather(*(backend.complete(request()) for _ in range(20)))

    with fake_llm([{"delay_seconds": 0.3, "text": "x"}]) as server:
        replies = with_backend(server, "openai", lambda backend: asyncio.wait_for(ask(backend), 4))
    assert len(replies) == 20


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
@pytest.mark.parametrize(
    "rule",
    [
        {"text": f"your key is {CANARY}", "fault": "malformed"},
        {"status": 401, "message": f"Incorrect API key provided: {CANARY}"},
        {"status": 500, "message": f"Bearer {CANARY}"},
        {"fault": "cut", "text": CANARY * 9},
        {"fault": "hang"},
    ],
)
def test_a_key_is_in_no_error_and_in_no_log(wire, rule, caplog):
    caplog.set_level(logging.DEBUG)
    with fake_llm([rule]) as server, pytest.raises(LLMError) as caught:
        complete(server, wire, request(timeout_s=1))
    told = [str(caught.value), repr(caught.value), json.dumps(caught.value.to_json()), repr(caught.value.__cause__)]
    assert not [text for text in [*told, caplog.text] if CANARY in text]
    assert caplog.records, "nothing was logged, so this test cannot fail"


def test_a_key_is_in_no_repr():
    with fake_llm() as server:
        found = Tiers(HttpPool(), LLMSettings(server.environment("anthropic", key=CANARY)))
        backend = found.backend("standard")
        shown = [repr(thing) for thing in (found, found.settings, backend, vars(backend), backend._endpoint)]
    assert not [text for text in shown if CANARY in text]
