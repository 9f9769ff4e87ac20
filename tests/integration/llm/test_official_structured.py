"""Structured output and embeddings, asked for by the official clients."""

from __future__ import annotations

import math
from typing import Literal

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel, Field, ValidationError

from loomq.testing import fake_llm

ASK = [{"role": "user", "content": "What is a cat? Answer in JSON."}]
MESSAGE = {"model": "fake-small", "max_tokens": 99, "messages": ASK}
CHAT = {"model": "fake-small", "messages": ASK}


class Source(BaseModel):
    title: str


class Found(BaseModel):
    label: Literal["animal", "plant"]
    likelihood: float = Field(ge=0, le=1)
    sources: list[Source]


ANSWER = {"label": "animal", "likelihood": 0.9, "sources": [{"title": "Brehm"}]}
PLAIN = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
STRICT = {**PLAIN, "additionalProperties": False}


def test_anthropic_s_client_parses_what_it_asked_for(claude):
    seen = []
    with fake_llm([lambda call: seen.append(call.schema) or ANSWER]) as server:
        client = claude(server)
        assert client.messages.parse(**MESSAGE, output_format=Found).parsed_output == Found(**ANSWER)
        with client.messages.stream(**MESSAGE, output_format=Found) as stream:
            assert stream.get_final_message().parsed_output.sources == [Source(title="Brehm")]
        wanted = {"type": "json_schema", "schema": STRICT}
        assert client.messages.create(**MESSAGE, output_config={"format": wanted, "effort": "low"}).content
    assert seen[0] == anthropic.transform_schema(Found)
    assert seen[2] == STRICT


def test_openai_s_client_parses_what_it_asked_for(gpt):
    seen = []
    with fake_llm([lambda call: seen.append(call.schema) or ANSWER]) as server:
        completions = gpt(server).chat.completions
        assert completions.parse(**CHAT, response_format=Found).choices[0].message.parsed == Found(**ANSWER)
        with completions.stream(**CHAT, response_format=Found) as stream:
            assert stream.get_final_completion().choices[0].message.parsed.label == "animal"
        loose = {"type": "json_schema", "json_schema": {"name": "found", "schema": PLAIN}}
        assert completions.create(**CHAT, response_format=loose).choices
        assert completions.create(**CHAT, response_format={"type": "json_object"}).choices
    assert seen[0]["additionalProperties"] is False
    assert seen[2:] == [PLAIN, None]


def test_ollama_s_client_hands_over_any_schema(llama):
    seen = []
    with fake_llm([lambda call: seen.append(call.schema) or ANSWER]) as server:
        for wanted in (Found.model_json_schema(), "json", None):
            content = llama(server).chat("fake-small", messages=ASK, format=wanted).message.content
            assert Found.model_validate_json(content) == Found(**ANSWER)
    assert seen == [Found.model_json_schema(), None, None]


def test_an_answer_that_does_not_conform_is_sent_all_the_same(claude, gpt):
    with fake_llm([{"json": {"label": "stone"}}]) as server:
        with pytest.raises(ValidationError):
            claude(server).messages.parse(**MESSAGE, output_format=Found)
        with pytest.raises(ValidationError):
            gpt(server).chat.completions.parse(**CHAT, response_format=Found)


def test_an_answer_that_is_cut_is_typed_by_openai_s_client(gpt):
    with fake_llm([{"json": ANSWER, "stop": "length", "times": 1}, {"json": ANSWER, "stop": "filter"}]) as server:
        with pytest.raises(openai.LengthFinishReasonError):
            gpt(server).chat.completions.parse(**CHAT, response_format=Found)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            gpt(server).chat.completions.parse(**CHAT, response_format=Found)


def field(**said):
    return {**STRICT, "properties": {"label": said}}


TREE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
CLAUDE_REFUSES = [
    (PLAIN, "For 'object' type, 'additionalProperties' must be explicitly set to false"),
    (field(type="object", properties={}), "properties.label: For 'object' type"),
    (field(type="integer", minimum=1), "properties.label: For 'integer' type, property 'minimum' is not supported"),
    (field(type="string", maxLength=9), "property 'maxLength' is not supported"),
    (field(type="string", pattern="a"), "property 'pattern' is not supported"),
    (field(type="string", default="a"), "property 'default' is not supported"),
    (field(type="string", format="regex"), "format 'regex' is not supported"),
    (field(type="array", items={"type": "string"}, minItems=2), "'minItems' values other than 0 or 1"),
    (field(oneOf=[{"type": "null"}]), "must have a 'type'"),
    (field(enum=[{}]), "Only strings, numbers"),
    (field(**{"$ref": "#/$defs/none"}), "'/$defs/none' does not exist"),
    (field(**{"$ref": "#"}), "properties.label: Unsupported or unknown $ref: #"),
    ({**TREE, "$defs": {"tree": TREE}}, "Recursive schemas"),
    ({"type": "thing"}, "not a JSON type"),
]


@pytest.mark.parametrize(("schema", "told"), CLAUDE_REFUSES)
def test_anthropic_s_wire_refuses_what_its_client_would_take_out_of_a_schema(claude, schema, told):
    with fake_llm() as server, pytest.raises(anthropic.BadRequestError) as caught:
        claude(server).messages.create(**MESSAGE, output_config={"format": {"type": "json_schema", "schema": schema}})
    message = caught.value.body["error"]["message"]
    assert (message.startswith("output_config.format.schema: "), told in message) == (True, True)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"format": {"type": "json_object"}}, "output_config.format.schema: Field required"),
        ({"format": {"type": "json", "schema": STRICT}}, "output_config.format.type"),
        ({"format": {"type": "json_schema", "schema": STRICT, "name": "x"}}, "output_config.format.name: Extra inputs"),
        ({"effort": "huge"}, "output_config.effort"),
        ({"schema": STRICT}, "output_config.schema: Extra inputs"),
    ],
)
def test_anthropic_s_wire_refuses_other_shapes_of_output_config(claude, config, told):
    with fake_llm() as server, pytest.raises(anthropic.BadRequestError) as caught:
        claude(server).messages.create(**MESSAGE, output_config=config)
    assert caught.value.body["error"]["message"].startswith(told)


def strict(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "found", "strict": True, "schema": schema, **more}}


GPT_REFUSES = [
    (strict(PLAIN), "response_format", "In context=(), 'additionalProperties' is required to be supplied"),
    (strict({**STRICT, "required": []}), "response_format", "Missing 'label'"),
    (
        strict(field(type="string", default="a")),
        "response_format",
        "('properties', 'label'), 'default' is not permitted",
    ),
    (strict({"type": "array", "items": {}}), "response_format", "got 'type: \"array\"'"),
    (strict(STRICT, name="a b"), "response_format.json_schema.name", "pattern"),
    (strict(STRICT, title="x"), "response_format.json_schema.title", "Unknown parameter"),
    ({"type": "json_schema", "schema": STRICT}, "response_format.schema", "Unknown parameter"),
    ({"type": "json"}, "response_format.type", "Invalid value"),
]


@pytest.mark.parametrize(("wanted", "param", "told"), GPT_REFUSES)
def test_openai_s_wire_refuses_schemas_that_are_not_strict(gpt, wanted, param, told):
    with fake_llm() as server, pytest.raises(openai.BadRequestError) as caught:
        gpt(server).chat.completions.create(**CHAT, response_format=wanted)
    assert (caught.value.param, told in caught.value.body["message"]) == (param, True)


def test_openai_s_json_mode_wants_the_word_in_the_prompt(gpt):
    with fake_llm() as server, pytest.raises(openai.BadRequestError, match="must contain the word 'json'"):
        gpt(server).chat.completions.create(
            model="fake-small", messages=[{"role": "user", "content": "hi"}], response_format={"type": "json_object"}
        )


def test_ollama_s_wire_refuses_what_is_no_schema(llama):
    for wanted, told in (("yaml", "invalid format"), ({"type": "thing"}, "invalid JSON schema")):
        with fake_llm() as server, pytest.raises(ollama.ResponseError, match=told):
            llama(server)._request_raw(
                "POST", "/api/chat", json={"model": "fake-small", "messages": ASK, "format": wanted}
            )


def test_servers_that_are_older_than_structured_output_refuse_it(claude, gpt, llama):
    with fake_llm([{"structured": False, "json": ANSWER}]) as server:
        with pytest.raises(anthropic.BadRequestError, match="output_config: Extra inputs are not permitted"):
            claude(server).messages.parse(**MESSAGE, output_format=Found)
        assert claude(server).messages.create(**MESSAGE).content
        with pytest.raises(openai.BadRequestError, match="argument supplied: response_format") as caught:
            gpt(server).chat.completions.parse(**CHAT, response_format=Found)
        assert caught.value.param == "response_format"
        assert gpt(server).chat.completions.create(**CHAT).choices
        assert llama(server).chat(**CHAT, format=PLAIN).message.content


TEXTS = ["A cat sleeps in the garden.", "In the garden, a cat sleeps!", "Brokers keep messages."]


def cosine(left, right):
    return sum(one * other for one, other in zip(left, right, strict=True))


def test_the_clients_read_embeddings_that_are_alike_where_texts_share_words(gpt, llama):
    with fake_llm() as server:
        found = gpt(server).embeddings.create(model="fake-small", input=TEXTS)
        vectors = [one.embedding for one in found.data]
        assert [one.index for one in found.data] == [0, 1, 2]
        assert server.journal[0].body["encoding_format"] == "base64"
        assert (found.model, found.usage.prompt_tokens > 9) == ("fake-small", True)
        floats = gpt(server).embeddings.create(model="fake-small", input=TEXTS, encoding_format="float")
        assert [one.embedding for one in floats.data] == [pytest.approx(vector, abs=1e-6) for vector in vectors]
        answer = llama(server).embed("fake-small", TEXTS)
        assert [*answer.embeddings] == [pytest.approx(vector, abs=1e-6) for vector in vectors]
        assert (answer.prompt_eval_count, answer.total_duration > 0) == (found.usage.prompt_tokens, True)
    assert all(math.isclose(cosine(vector, vector), 1, abs_tol=1e-6) for vector in vectors)
    assert cosine(vectors[0], vectors[1]) > 0.99
    assert cosine(vectors[0], vectors[2]) < 0.5


def test_one_text_and_other_dimensions(gpt, llama):
    with fake_llm() as server:
        (one,) = gpt(server).embeddings.create(model="fake-small", input="a cat", dimensions=8).data
        assert len(one.embedding) == 8
        assert [len(vector) for vector in llama(server).embed("fake-small", "a cat", dimensions=8).embeddings] == [8]
        assert len(llama(server).embed("fake-small", "a cat", truncate=False).embeddings[0]) == 64
        assert llama(server).embed("fake-small", "").embeddings == []


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": []}, None),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"truncate": True}}, "truncate"),
    ],
)
def test_openai_s_wire_refuses_inputs_that_cannot_be_embedded(gpt, said, param):
    with fake_llm() as server, pytest.raises(openai.BadRequestError) as caught:
        gpt(server).embeddings.create(**{"model": "fake-small", "input": "a cat", **said})
    assert caught.value.param == param


def test_embeddings_need_key_and_model_and_may_fail_by_a_rule(gpt, llama):
    rules = [{"kind": "embed", "model": "fake-small", "status": 429, "times": 1}, {"status": 500}]
    with fake_llm(rules, keys=["right"]) as server:
        with pytest.raises(openai.AuthenticationError):
            gpt(server).embeddings.create(model="fake-small", input="a")
        client = gpt(server, api_key="right")
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="none", input="a")
        with pytest.raises(ollama.ResponseError, match="model 'none' not found"):
            llama(server).embed("none", "a")
        assert client.embeddings.create(model="fake-large", input="a").data
        with pytest.raises(openai.RateLimitError):
            client.embeddings.create(model="fake-small", input="a")
        assert client.embeddings.create(model="fake-small", input="a").data
        assert [entry.rule for entry in server.journal] == [None, None, None, None, 0, None]


def test_connections_that_end_in_embeddings_are_connection_errors(gpt):
    with fake_llm([{"kind": "embed", "fault": "cut"}]) as server, pytest.raises(openai.APIConnectionError):
        gpt(server).embeddings.create(model="fake-small", input="a")
