"""The official clients of all three providers take the fake server for the real one."""

from __future__ import annotations

import anthropic
import ollama
import openai
import pytest

from loomq.testing import fake_llm

ASK = [{"role": "user", "content": "What is a cat?"}]
ANSWER = {"label": "animal"}


def test_anthropic_s_client_reads_answer_usage_and_stop_reason(claude):
    with fake_llm([{"json": ANSWER, "prompt_tokens": 11, "completion_tokens": 7}]) as server:
        found = claude(server).messages.create(model="fake-small", max_tokens=99, system="Classify.", messages=ASK)
        assert found.content[0].text == '{"label": "animal"}'
        assert (found.usage.input_tokens, found.usage.output_tokens) == (11, 7)
        assert (found.stop_reason, found.model, found.role, found.type) == (
            "end_turn", "fake-small", "assistant", "message"
        )  # fmt: skip
        assert found._request_id.startswith("req_")
        assert server.journal[0].body == {
            "model": "fake-small", "max_tokens": 99, "system": "Classify.", "messages": ASK
        }  # fmt: skip


def test_openai_s_client_reads_answer_usage_and_finish_reason(gpt):
    with fake_llm([{"json": ANSWER, "prompt_tokens": 11, "completion_tokens": 7}]) as server:
        found = gpt(server).chat.completions.create(model="fake-small", max_completion_tokens=99, messages=ASK)
        assert found.choices[0].message.content == '{"label": "animal"}'
        assert found.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        assert (found.choices[0].finish_reason, found.model) == ("stop", "fake-small")
        assert found._request_id.startswith("req_")


def test_ollama_s_client_reads_answer_and_counts(llama):
    with fake_llm([{"json": ANSWER, "prompt_tokens": 11, "completion_tokens": 7}]) as server:
        found = llama(server).chat("fake-small", messages=ASK, options={"num_predict": 99, "temperature": 0.1})
        assert found.message.content == '{"label": "animal"}'
        assert (found.prompt_eval_count, found.eval_count, found.done_reason) == (11, 7, "stop")


def test_the_clients_list_the_models_page_by_page(claude, gpt, llama):
    names = ["one", "two", "three"]
    with fake_llm(models=names) as server:
        assert [model.id for model in claude(server).models.list(limit=2)] == names
        assert claude(server).models.retrieve("two").display_name == "two"
        assert [model.id for model in gpt(server).models.list()] == names
        assert gpt(server).models.retrieve("two").object == "model"
        assert [model.model for model in llama(server).list().models] == names


def test_the_clients_read_tool_calls(claude, gpt, llama):
    call = {"name": "look_up", "arguments": {"word": "cat"}}
    with fake_llm([{"tool_calls": [call]}]) as server:
        message = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert (message.stop_reason, message.content[0].name, message.content[0].input) == (
            "tool_use", "look_up", {"word": "cat"}
        )  # fmt: skip
        choice = gpt(server).chat.completions.create(model="fake-small", messages=ASK).choices[0]
        assert (choice.finish_reason, choice.message.tool_calls[0].function.name) == ("tool_calls", "look_up")
        assert choice.message.tool_calls[0].function.arguments == '{"word": "cat"}'
        assert llama(server).chat("fake-small", messages=ASK).message.tool_calls[0].function.arguments == {
            "word": "cat"
        }


def test_the_clients_see_refusals_and_cut_answers(claude, gpt, llama):
    with fake_llm([{"fault": "refusal", "times": 2}, {"text": "x" * 400, "fault": "truncated"}]) as server:
        message = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert (message.stop_reason, message.stop_details.category) == ("refusal", "general_harms")
        choice = gpt(server).chat.completions.create(model="fake-small", messages=ASK).choices[0]
        assert (choice.message.content, choice.finish_reason) == (None, "stop")
        assert choice.message.refusal
        assert (
            claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK).stop_reason == "max_tokens"
        )
        assert (
            gpt(server).chat.completions.create(model="fake-small", messages=ASK).choices[0].finish_reason == "length"
        )
        assert llama(server).chat("fake-small", messages=ASK).done_reason == "length"


CLAUDE_ERRORS = [
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (402, anthropic.PaymentRequiredError, "billing_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (504, anthropic.GatewayTimeoutError, "timeout_error"),
    (529, anthropic.OverloadedError, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "kind", "name"), CLAUDE_ERRORS)
def test_anthropic_s_client_types_the_errors(claude, status, kind, name):
    with fake_llm([{"status": status, "message": "told", "retry_after": 2.5}]) as server:
        with pytest.raises(kind) as caught:
            claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert caught.value.body["error"] == {"type": name, "message": "told"}
        assert caught.value.response.headers["retry-after"] == "2.5"
        assert caught.value.request_id.startswith("req_")


GPT_ERRORS = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (503, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind"), GPT_ERRORS)
def test_openai_s_client_types_the_errors(gpt, status, kind):
    with fake_llm([{"status": status, "message": "told", "code": "why"}]) as server:
        with pytest.raises(kind) as caught:
            gpt(server).chat.completions.create(model="fake-small", messages=ASK)
        assert (caught.value.code, caught.value.body["message"]) == ("why", "told")
        assert caught.value.type


def test_ollama_s_client_reads_the_errors(llama):
    with fake_llm([{"status": 503, "message": "server busy"}]) as server:
        with pytest.raises(ollama.ResponseError) as caught:
            llama(server).chat("fake-small", messages=ASK)
        assert (caught.value.status_code, caught.value.error) == (503, "server busy")
        with pytest.raises(ollama.ResponseError, match="model 'none' not found") as caught:
            llama(server).chat("none", messages=ASK)
        assert caught.value.status_code == 404


def test_the_clients_own_retries_honour_the_wait_and_succeed(claude, gpt):
    with fake_llm([{"status": 529, "retry_after": 0.01, "times": 1}, {"text": "ok"}]) as server:
        found = claude(server, max_retries=2).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert found.content[0].text == "ok"
    with fake_llm([{"status": 429, "retry_after": 0.01, "times": 1}, {"text": "ok"}]) as server:
        assert gpt(server, max_retries=2).chat.completions.create(model="fake-small", messages=ASK).choices
        assert [entry.status for entry in server.journal] == [429, 200]


def test_cached_prompt_tokens_are_told_as_each_wire_tells_them(claude, gpt, llama):
    with fake_llm([{"text": "x", "prompt_tokens": 11, "cached_tokens": 8}]) as server:
        usage = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK).usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (3, 8)
        usage = gpt(server).chat.completions.create(model="fake-small", messages=ASK).usage
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (11, 8)
        assert llama(server).chat("fake-small", messages=ASK).prompt_eval_count == 11


STOPS = [
    ("length", "max_tokens", "length", "length"),
    ("pause", "pause_turn", "stop", "stop"),
    ("filter", "refusal", "content_filter", "stop"),
    ("end", "end_turn", "stop", "stop"),
]


@pytest.mark.parametrize(("stop", "claudes", "gpts", "llamas"), STOPS)
def test_a_rule_says_why_an_answer_ends(claude, gpt, llama, stop, claudes, gpts, llamas):
    with fake_llm([{"text": "x", "stop": stop}]) as server:
        message = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert (message.stop_reason, message.content[0].text) == (claudes, "x")
        choice = gpt(server).chat.completions.create(model="fake-small", messages=ASK).choices[0]
        assert (choice.finish_reason, choice.message.content) == (gpts, "x")
        assert llama(server).chat("fake-small", messages=ASK).done_reason == llamas


def test_an_exceeded_context_is_a_stop_reason_or_an_error(claude, gpt, llama):
    with fake_llm([{"text": "x", "stop": "context"}]) as server:
        message = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert message.stop_reason == "model_context_window_exceeded"
        with pytest.raises(openai.BadRequestError) as caught:
            gpt(server).chat.completions.create(model="fake-small", messages=ASK)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(ollama.ResponseError, match="context length"):
            llama(server).chat("fake-small", messages=ASK)


def test_thoughts_come_first_and_come_back_unchanged_or_not_at_all(claude, gpt, llama):
    with fake_llm([{"thinking": "A cat, then.", "text": "animal", "completion_tokens": 9}]) as server:
        client = claude(server)
        message = client.messages.create(model="fake-small", max_tokens=9, messages=ASK)
        thought, said = message.content
        assert (thought.thinking, said.text) == ("A cat, then.", "animal")
        assert message.usage.output_tokens_details.thinking_tokens == 3
        again = [*ASK, message.to_param(), {"role": "user", "content": "Sure?"}]
        assert client.messages.create(model="fake-small", max_tokens=9, messages=again).content
        thought.thinking = "A dog, then."
        with pytest.raises(anthropic.BadRequestError, match=r"messages.1.content.0: Invalid `signature`"):
            client.messages.create(model="fake-small", max_tokens=9, messages=[*ASK, message.to_param()])
        found = gpt(server).chat.completions.create(model="fake-small", messages=ASK)
        assert found.usage.completion_tokens_details.reasoning_tokens == 3
        answer = llama(server).chat("fake-small", messages=ASK).message
        assert (answer.thinking, answer.content) == ("A cat, then.", "animal")


def test_connections_that_end_or_hang_are_connection_errors(claude, gpt):
    with fake_llm([{"text": "x" * 99, "fault": "cut", "times": 2}, {"fault": "hang"}]) as server:
        with pytest.raises(anthropic.APIConnectionError):
            claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        with pytest.raises(openai.APIConnectionError):
            gpt(server).chat.completions.create(model="fake-small", messages=ASK)
        with pytest.raises(anthropic.APITimeoutError):
            claude(server, timeout=0.2).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        with pytest.raises(openai.APITimeoutError):
            gpt(server, timeout=0.2).chat.completions.create(model="fake-small", messages=ASK)


def test_keys_are_checked_where_the_real_ones_are(claude, gpt):
    with fake_llm(keys=["right"]) as server:
        with pytest.raises(anthropic.AuthenticationError):
            claude(server, api_key="wrong").messages.create(model="fake-small", max_tokens=9, messages=ASK)
        with pytest.raises(openai.AuthenticationError) as caught:
            gpt(server, api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"
        assert claude(server, api_key="right").models.list().data
        assert gpt(server, api_key="right").models.list().data


def test_sampling_parameters_are_refused_in_the_new_version_and_taken_in_the_old(claude):
    body = {"temperature": 0.5}
    with fake_llm() as server:
        client = claude(server)
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            client.messages.create(model="fake-small", max_tokens=9, messages=ASK, extra_body=body)
        old = {"anthropic-version": "2023-06-01", "x-api-key": "k"}
        assert client.messages.create(
            model="fake-small", max_tokens=9, messages=ASK, extra_body=body, extra_headers=old
        ).content


@pytest.mark.parametrize("name", ["heat", "max_output_tokens"])
def test_an_unknown_field_is_refused_by_name(claude, gpt, name):
    with fake_llm() as server:
        with pytest.raises(anthropic.BadRequestError, match=f"{name}: Extra inputs"):
            claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK, extra_body={name: 1})
        with pytest.raises(openai.BadRequestError, match=name) as caught:
            gpt(server).chat.completions.create(model="fake-small", messages=ASK, extra_body={name: 1})
        assert caught.value.param == name
