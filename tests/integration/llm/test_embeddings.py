"""Embeddings over HTTP, from the fake server: both wires, their order, and every fault as its error."""

from __future__ import annotations

import asyncio
import logging

import pytest

from loomq.errors import LLMError, LLMRateLimitError, LLMUnavailableError
from loomq.llm.embeddings import embedding_provider
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.testing import fake_llm

WIRES = ["openai", "ollama"]
PATHS = {"openai": "/v1/embeddings", "ollama": "/api/embed"}
CANARY = "canary-4f1d0c9e7b"


def with_provider(server, wire, work, **variables):
    """Do some asynchronous work with the provider that a server's environment gives."""

    async def run():
        pool = HttpPool()
        try:
            said = {**server.environment(wire, key=CANARY), "EMBEDDING_BACKEND": wire, "EMBEDDING_MODEL": "fake-small"}
            return await work(embedding_provider(LLMSettings({**said, **variables}), pool))
        finally:
            await pool.aclose()

    return asyncio.run(run())


def embed(server, wire, *texts, **variables):
    return with_provider(server, wire, lambda provider: provider.embed_batch(texts or ("a cat",)), **variables)


@pytest.mark.parametrize("wire", WIRES)
def test_the_request_is_this_and_nothing_more(wire):
    with fake_llm() as server:
        embed(server, wire, "a cat", "a dog")
        entry = server.journal[0]
    more = {"encoding_format": "float"} if wire == "openai" else {}
    assert (entry.method, entry.path) == ("POST", PATHS[wire])
    assert entry.body == {"model": "fake-small", "input": ["a cat", "a dog"], **more}
    assert entry.headers.get("authorization") == ("***" if wire == "openai" else None)


@pytest.mark.parametrize("wire", WIRES)
def test_a_text_has_one_vector_alone_and_among_others(wire):
    texts = [f"text number {number}" for number in range(150)]

    async def ask(provider):
        alone = [await provider.embed(text) for text in (texts[0], texts[77], texts[149])]
        return alone, await provider.embed_batch(texts), await provider.dimensions()

    with fake_llm() as server:
        alone, together, width = with_provider(server, wire, ask)
        sizes = [len(entry.body["input"]) for entry in server.journal]
    assert alone == [together[0], together[77], together[149]]
    assert {len(vector) for vector in together} == {width}
    assert len({tuple(vector) for vector in alone}) == len(alone)
    assert sizes == [1, 1, 1, 64, 64, 22]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("rule", "kind", "retryable"),
    [
        ({"status": 401}, LLMError, False),
        ({"status": 404}, LLMError, False),
        ({"status": 429, "retry_after": 7}, LLMRateLimitError, True),
        ({"status": 503}, LLMUnavailableError, True),
    ],
)
def test_an_error_says_whether_to_try_again(wire, rule, kind, retryable):
    with fake_llm([{"kind": "embed", **rule}]) as server, pytest.raises(LLMError) as caught:
        embed(server, wire)
    assert (type(caught.value), caught.value.retryable) == (kind, retryable)
    assert caught.value.retry_after_s == rule.get("retry_after")


@pytest.mark.parametrize("wire", WIRES)
def test_an_unknown_model_is_an_error_that_names_the_way_out(wire):
    with fake_llm() as server, pytest.raises(LLMError, match="doctor") as caught:
        embed(server, wire, EMBEDDING_MODEL="nowhere")
    assert not caught.value.retryable


@pytest.mark.parametrize("wire", WIRES)
def test_nobody_there_is_worth_another_try(wire):
    with fake_llm() as server:
        pass
    with pytest.raises(LLMUnavailableError, match="out of reach"):
        embed(server, wire)


def test_a_key_is_in_no_error_and_in_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    with fake_llm(keys=["another"]) as server, pytest.raises(LLMError) as caught:
        embed(server, "openai")
    assert CANARY not in f"{caught.value!r} {caught.value} {caplog.text}"
    assert "check OPENAI_API_KEY" in caught.value.hint
    assert caplog.records, "nothing was logged, so this test cannot fail"
