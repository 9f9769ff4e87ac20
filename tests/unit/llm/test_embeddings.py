"""Vectors as they are asked for and checked, and which provider the user's words mean."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import SecretStr

from loomq.contrib.embeddings.hashed import HashedEmbeddingProvider
from loomq.errors import ConfigError, ImportRefusedError, LLMAnswerError
from loomq.llm.embeddings import OllamaEmbeddingProvider, OpenAIEmbeddingProvider, embedding_provider
from loomq.llm.http import HttpPool, Response
from loomq.llm.settings import LLMSettings

KEY = {"OPENAI_API_KEY": "k"}
MODEL = {"EMBEDDING_MODEL": "m"}


class Canned:
    """A pool that has its answers already."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.sent = []

    async def send(self, method, url, *, body, **more):
        self.sent.append((url, json.loads(body)))
        answer = self.answers.pop(0)
        return Response(200, {}, (answer if isinstance(answer, str) else json.dumps(answer)).encode())


def ollama(*answers, **more):
    return OllamaEmbeddingProvider(Canned(*answers), "m", base_url="http://h:1/", **more)


def openai(*answers, **more):
    return OpenAIEmbeddingProvider(Canned(*answers), "m", SecretStr("k"), base_url="http://h:1/v1/", **more)


def indexed(*vectors):
    return {"data": [{"index": index, "embedding": vector, "object": "embedding"} for index, vector in vectors]}


def sent(provider):
    return provider._endpoint.pool.sent


def run(coroutine):
    return asyncio.run(coroutine)


def test_the_requests_are_these_and_nothing_more():
    one, two = ollama({"embeddings": [[1.0, 0]]}), openai(indexed((0, [1, 0.5])))
    assert (run(one.embed("a")), run(two.embed("a"))) == ([1.0, 0.0], [1.0, 0.5])
    assert sent(one) == [("http://h:1/api/embed", {"model": "m", "input": ["a"]})]
    assert sent(two) == [("http://h:1/v1/embeddings", {"model": "m", "input": ["a"], "encoding_format": "float"})]


def test_vectors_of_a_wanted_length_are_asked_for():
    for provider in (ollama({"embeddings": [[1]]}, dimensions=1), openai(indexed((0, [1])), dimensions=1)):
        run(provider.embed("a"))
        assert sent(provider)[0][1]["dimensions"] == 1
        assert run(provider.dimensions()) == 1


def test_nothing_costs_no_request():
    assert run(openai().embed_batch([])) == []


def test_a_large_batch_is_split_and_keeps_its_order():
    answers = [{"embeddings": [[float(number)] for number in part]} for part in (range(3), range(3, 6), [6])]
    provider = ollama(*answers, batch_size=3)
    assert run(provider.embed_batch([f"{number}" for number in range(7)])) == [[float(number)] for number in range(7)]
    assert [body["input"] for _, body in sent(provider)] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_vectors_are_put_where_their_index_says():
    assert run(openai(indexed((1, [2]), (0, [1]))).embed_batch(["a", "b"])) == [[1.0], [2.0]]


def test_the_length_of_vectors_is_asked_for_once_and_then_known():
    provider = ollama({"embeddings": [[1, 2, 3]]})
    assert [run(provider.dimensions()) for _ in range(2)] == [3, 3]
    assert len(sent(provider)) == 1


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        (ollama({"embeddings": [[1]]}), "1 vectors for 2 texts"),
        (ollama({"embeddings": [[1], [1, 2]]}), "a vector of 2 numbers where 1 were expected"),
        (ollama({"embeddings": [[1], [2]]}, dimensions=3), "a vector of 1 numbers where 3 were expected"),
        (ollama({"embeddings": [[], []]}), "malformed"),
        (ollama({"embeddings": [["1"], [2]]}), "malformed"),
        (ollama('{"embeddings": [[NaN], [1]]}'), "malformed"),
        (ollama('{"embeddings": [[1e999], [1]]}'), "malformed"),
        (ollama({"embedding": [1]}), "malformed"),
        (openai(indexed((0, [1]), (0, [2]))), "with gaps or twice"),
        (openai(indexed((1, [1]), (2, [2]))), "with gaps or twice"),
        (openai(indexed((0, [1]))), "1 vectors for 2 texts"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(provider, told):
    with pytest.raises(LLMAnswerError, match=told) as caught:
        run(provider.embed_batch(["a", "b"]))
    assert caught.value.retryable


@pytest.mark.parametrize("more", [{"batch_size": 0}, {"dimensions": 0}])
def test_sizes_are_at_least_one(more):
    with pytest.raises(ConfigError, match="at least 1"):
        ollama(**more)


def made(*said, name=None, **more):
    settings = LLMSettings({key: value for one in said for key, value in one.items()})
    return embedding_provider(settings, HttpPool(), name, **more)


@pytest.mark.parametrize(
    ("said", "name", "kind", "told"),
    [
        ([KEY, MODEL], None, OpenAIEmbeddingProvider, "OpenAI"),
        ([{"OPENAI_API_KEY_FILE": __file__}, MODEL], None, OpenAIEmbeddingProvider, "OpenAI"),
        ([MODEL], None, OllamaEmbeddingProvider, "Ollama"),
        ([KEY, MODEL, {"EMBEDDING_BACKEND": "ollama"}], None, OllamaEmbeddingProvider, "Ollama"),
        ([MODEL, {"OPENAI_BASE_URL": "http://h:1/v1"}], "openai", OpenAIEmbeddingProvider, "OpenAI-compatible"),
        ([KEY, {"EMBEDDING_BACKEND": "hashed"}], None, HashedEmbeddingProvider, "hashed"),
        ([], "loomq.contrib.embeddings.hashed.HashedEmbeddingProvider", HashedEmbeddingProvider, "hashed"),
    ],
)
def test_the_user_s_words_name_a_provider(said, name, kind, told, monkeypatch):
    monkeypatch.setattr("loomq.llm.settings._read_key", lambda *_: SecretStr("k"))
    provider = made(*said, name=name)
    assert type(provider) is kind
    assert told in provider.provider
    assert provider.model in ("m", "hashed-256")


@pytest.mark.parametrize(
    ("said", "name", "told"),
    [
        ([], None, "set EMBEDDING_MODEL"),
        ([KEY], None, "set EMBEDDING_MODEL"),
        ([MODEL], "openai", "OPENAI_API_KEY is not set"),
        ([MODEL, KEY, {"OPENAI_BASE_URL": "http://h/v1"}], None, "unencrypted"),
        ([{"EMBEDDING_BACKEND": "olama"}], None, 'did you mean "ollama"'),
        ([], "wordnet", "minilm"),
    ],
)
def test_an_error_says_what_to_set(said, name, told):
    with pytest.raises(ConfigError) as caught:
        made(*said, name=name)
    assert told in str(caught.value)


def test_a_private_network_may_carry_the_key_in_the_clear():
    assert made(MODEL, KEY, {"OPENAI_BASE_URL": "http://h/v1"}, insecure=True).model == "m"


@pytest.mark.parametrize("name", ["os.path.join", "loomq.contrib.pydocs.ask.Ask"])
def test_only_a_provider_of_an_allowed_package_is_made(name):
    with pytest.raises(ImportRefusedError):
        made(name=name)
