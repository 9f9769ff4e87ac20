"""What the fake server refuses, without a client that would refuse it first; its journal; its end."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import asdict

import pytest

from loomq.llm.fake_server.extractive import LABEL, MODEL
from loomq.llm.fake_server.server import FakeServer, extractive_server
from loomq.testing import fake_llm, wait_until

NEW = {"anthropic-version": "2026-10-21", "authorization": "Bearer k"}
OLD = {"anthropic-version": "2023-06-01", "x-api-key": "k"}
KEY = {"authorization": "Bearer k"}
ASK = [{"role": "user", "content": "hi"}]
MESSAGE = {"model": "fake-small", "max_tokens": 9, "messages": ASK}
CHAT = {"model": "fake-small", "messages": ASK}


def send(server, method, path, body=None, headers=None):
    """Make one raw request; gives status and body, as JSON if it is that."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        text = body if isinstance(body, str | None) else json.dumps(body)
        connection.request(method, path, text, headers or {})
        response = connection.getresponse()
        raw = response.read().decode()
        kind = response.headers["content-type"]
        return response.status, json.loads(raw) if kind == "application/json" else raw
    finally:
        connection.close()


@pytest.fixture(scope="module")
def server():
    with fake_llm() as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "body", "status", "kind", "told"),
    [
        (KEY, MESSAGE, 400, "invalid_request_error", "anthropic-version: header is required"),
        ({**NEW, "anthropic-version": "2024-01-01"}, MESSAGE, 400, "invalid_request_error", "not a valid version"),
        ({"anthropic-version": "2026-10-21"}, MESSAGE, 401, "authentication_error", "header is required"),
        ({**KEY, "anthropic-version": "2023-06-01"}, MESSAGE, 401, "authentication_error", "x-api-key"),
        (NEW, "{", 400, "invalid_request_error", "not valid JSON"),
        (NEW, {**MESSAGE, "max_tokens": "9"}, 400, "invalid_request_error", "max_tokens"),
        (NEW, {**MESSAGE, "max_tokens": True}, 400, "invalid_request_error", "max_tokens"),
        (NEW, {"model": "fake-small", "messages": ASK}, 400, "invalid_request_error", "max_tokens: Field required"),
        (NEW, {**MESSAGE, "messages": []}, 400, "invalid_request_error", "at least one message"),
        (NEW, {**MESSAGE, "messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error", "role"),
        (NEW, {**MESSAGE, "messages": [{"role": "user", "content": ""}]}, 400, "invalid_request_error", "non-empty"),
        (NEW, {**MESSAGE, "top_k": 1}, 400, "invalid_request_error", "top_k"),
        (OLD, {**MESSAGE, "temperature": 1.5}, 400, "invalid_request_error", "range"),
        (NEW, {**MESSAGE, "stream": "yes"}, 400, "invalid_request_error", "stream"),
        (NEW, {**MESSAGE, "model": "none"}, 404, "not_found_error", "model: none"),
    ],
)
def test_anthropic_s_wire_refuses_what_the_real_one_refuses(server, headers, body, status, kind, told):
    found, answer = send(server, "POST", "/v1/messages", body, headers)
    assert (found, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert told in answer["error"]["message"]


@pytest.mark.parametrize("headers", [NEW, OLD, {**OLD, "anthropic-version": "2026-10-21"}])
def test_anthropic_s_wire_takes_the_key_as_the_version_has_it(server, headers):
    assert send(server, "POST", "/v1/messages", MESSAGE, headers)[0] == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "param", "code"),
    [
        ({}, CHAT, 401, None, "invalid_api_key"),
        (KEY, "[", 400, None, None),
        (KEY, {"messages": ASK}, 400, "model", "missing_required_parameter"),
        (KEY, {"model": "fake-small"}, 400, "messages", "missing_required_parameter"),
        (KEY, {**CHAT, "model": "none"}, 404, None, "model_not_found"),
        (KEY, {**CHAT, "temperature": 3}, 400, "temperature", None),
        (KEY, {**CHAT, "max_tokens": 1, "max_completion_tokens": 1}, 400, "max_tokens", None),
        (KEY, {**CHAT, "max_completion_tokens": 0}, 400, "max_completion_tokens", None),
        (KEY, {**CHAT, "messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", None),
        (KEY, {**CHAT, "system": "x"}, 400, "system", None),
    ],
)
def test_openai_s_wire_refuses_what_the_real_one_refuses(server, headers, body, status, param, code):
    found, answer = send(server, "POST", "/v1/chat/completions", body, headers)
    assert (found, answer["error"]["param"], answer["error"]["code"]) == (status, param, code)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("nonsense", 400, "invalid character"),
        ({"messages": ASK}, 400, "model is required"),
        ({**CHAT, "model": "none"}, 404, "model 'none' not found"),
        ({**CHAT, "options": {"num_predict": 1.5}}, 400, "integer"),
        ({**CHAT, "options": {"temperature": "hot"}}, 400, "float32"),
    ],
)
def test_ollama_s_wire_refuses_what_the_real_one_refuses(server, body, status, told):
    found, answer = send(server, "POST", "/api/chat", body)
    assert found == status
    assert told in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "body"),
    [
        ("GET", "/v1/messages", NEW, 405, {"type": "error"}),
        ("POST", "/v1/nothing", NEW, 404, {"type": "error"}),
        ("GET", "/v1/chat/completions", KEY, 405, {}),
        ("POST", "/v1/models", KEY, 405, {}),
        ("POST", "/v1/nothing", KEY, 404, {}),
        ("GET", "/v1/models/none", KEY, 404, {}),
        ("GET", "/v1/models/none", NEW, 404, {"type": "error"}),
    ],
)
def test_a_wrong_path_or_method_is_answered_in_the_wire_s_shape(server, method, path, headers, status, body):
    found, answer = send(server, method, path, None, headers)
    assert found == status
    assert answer["error"]["message"]
    assert body.items() <= answer.items()


def test_ollama_s_wire_answers_wrong_paths_in_plain_text(server):
    assert send(server, "GET", "/api/nothing") == (404, "404 page not found")
    assert send(server, "GET", "/api/chat") == (405, "405 method not allowed")


def test_a_request_that_no_rule_is_for_is_refused_and_says_so():
    with fake_llm([{"contains": "cat", "text": "x"}]) as server:
        status, answer = send(server, "POST", "/v1/chat/completions", CHAT, KEY)
        assert (status, "no rule" in answer["error"]["message"]) == (400, True)


def test_the_journal_holds_what_was_asked_and_no_key(tmp_path):
    file = tmp_path / "journal.jsonl"
    secret = "canary-" + "k" * 20
    with FakeServer([{"text": "ok", "times": 1}, {"status": 429, "times": 1}], journal_file=file) as server:
        headers = {**NEW, "authorization": f"Bearer {secret}", "x-echo": f"it is {secret}"}
        body = {**MESSAGE, "system": f"my key is {secret}"}
        for _ in range(3):
            send(server, "POST", "/v1/messages", body, headers)
        send(server, "GET", "/v1/models", None, {"x-api-key": secret, "anthropic-version": "2023-06-01"})
        entries = list(server.journal)
    assert [(entry.status, entry.rule) for entry in entries] == [(200, 0), (429, 1), (400, None), (200, None)]
    assert entries[0].body["messages"] == ASK
    assert (entries[0].wire, entries[0].method, entries[0].path) == ("anthropic", "POST", "/v1/messages")
    lines = file.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(entry) for entry in entries]
    assert secret not in file.read_text() + repr(entries)


def test_the_server_ends_at_once_though_requests_hang():
    before = threading.active_count()
    with fake_llm([{"fault": "hang"}]) as server:
        results = []

        def ask():
            try:
                results.append(send(server, "POST", "/api/chat", CHAT))
            except (http.client.HTTPException, OSError) as error:
                results.append(error)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        wait_until(lambda: len(server.journal) == 3, "the requests to arrive")
    for thread in asking:
        thread.join(5)
    assert len(results) == 3
    assert threading.active_count() == before


def test_it_listens_on_this_machine_only(server):
    assert server._http.server_address[0] == "127.0.0.1"


def test_the_extractive_server_needs_no_key_and_says_that_it_is_no_llm():
    text = "A broker keeps the messages of a task until a worker process takes them. Cats sleep for most of the day."
    with extractive_server() as server:
        body = {"model": MODEL, "messages": [{"role": "user", "content": json.dumps({"text": text, "length": 1})}]}
        status, answer = send(server, "POST", "/v1/chat/completions", body)
        assert status == 200
        assert answer["model"] == LABEL == "loomq-extractive-1 (not an LLM)"
        assert json.loads(answer["choices"][0]["message"]["content"])["summary"] in text
        listed = send(server, "GET", "/v1/models")[1]["data"]
        assert [(model["id"], model["owned_by"]) for model in listed] == [(MODEL, LABEL)]
