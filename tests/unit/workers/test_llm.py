"""The prompt of an LLM worker, and what its answer must be."""

from __future__ import annotations

import pytest

from loomq.errors import LLMAnswerError, LLMError
from loomq.llm.base import LLMReply, StopReason
from loomq.llm.tokens import estimated_tokens
from loomq.workers.llm import output_of
from loomq.workers.prompt import request_of
from loomq.workers.spec import WorkerSpec


def worker(**more):
    return WorkerSpec.model_validate({"name": "w", "system_prompt": "Do it.", **more})


def reply(content='{"a": 1}', stop=StopReason.END_TURN):
    return LLMReply(content=content, model="m", prompt_tokens=1, completion_tokens=2, stop_reason=stop)


def test_the_prompt_is_the_system_prompt_and_the_payload_as_indented_json():
    request = request_of(worker(), {"text": "Grüße", "n": [1]}, 9)
    assert request.system == "Do it."
    (message,) = request.messages
    assert message.role == "user"
    assert message.content == '{\n  "text": "Grüße",\n  "n": [\n    1\n  ]\n}'
    assert (request.max_output_tokens, request.temperature, request.timeout_s) == (2000, None, 9)


def test_limits_and_temperature_are_the_worker_s():
    request = request_of(worker(max_output_tokens=7, temperature=0.0), {}, 1)
    assert (request.max_output_tokens, request.temperature) == (7, 0.0)


def test_an_estimate_counts_bytes_and_not_characters():
    assert estimated_tokens("") == 0
    assert estimated_tokens("abcd") == 2
    assert estimated_tokens("漢字") == 2
    assert estimated_tokens("\ud800") == 1


@pytest.mark.parametrize("stop", [StopReason.END_TURN, StopReason.STOP_SEQUENCE])
def test_the_output_is_the_object_in_the_answer(stop):
    assert output_of(worker(), reply('Sure: {"a": 1}', stop)) == ({"a": 1}, "surrounded")


def test_an_answer_that_was_cut_off_names_the_limit_and_is_not_repeated():
    with pytest.raises(LLMError, match="cut off at max_output_tokens, 2,000") as caught:
        output_of(worker(), reply(stop=StopReason.MAX_TOKENS))
    assert not caught.value.retryable


def test_an_answer_that_waits_for_a_tool_and_names_none_is_none():
    with pytest.raises(LLMAnswerError, match="asked for none"):
        output_of(worker(), reply(stop=StopReason.TOOL_USE))


def test_an_answer_without_an_object_may_be_better_next_time():
    with pytest.raises(LLMAnswerError) as caught:
        output_of(worker(), reply("I don't know."))
    assert caught.value.retryable
