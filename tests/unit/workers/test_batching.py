"""Which calls are joined, what they cost each, and that nobody waits for ever."""

from __future__ import annotations

import json
import threading

import pytest

from loomq.contracts import Contract
from loomq.errors import LLMRefusedError, LLMUnavailableError, SoftDeadline
from loomq.llm.base import LLMMessage, LLMReply, LLMRequest, StopReason
from loomq.workers.batching import Batcher, UnusableBatchError, joined
from loomq.workers.spec import Batch

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def request(payload, system="Work.", **more):
    return LLMRequest(
        system=system,
        messages=(LLMMessage(role="user", content=json.dumps(payload)),),
        max_output_tokens=10,
        timeout_s=5,
        **more,
    )


def reply(content, **more):
    plain = {"model": "m", "prompt_tokens": 10, "completion_tokens": 5, "stop_reason": StopReason.END_TURN}
    return LLMReply(content=content, **{**plain, **more})


def at_once(batcher, batch, requests, call, tier="standard"):
    """Ask for all of them in threads of their own; gives the replies or errors in order."""
    found = [None] * len(requests)

    def ask(number):
        try:
            found[number] = batcher.ask(batch, tier, requests[number], call, 10)
        except BaseException as error:  # noqa: BLE001
            found[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def answer_all(asked):
    def call(joint):
        asked.append(joint)
        given = json.loads(joint.messages[0].content)
        many = given if isinstance(given, list) else [given]
        results = [{"n": one["n"]} for one in many]
        return reply(json.dumps({"results": results} if isinstance(given, list) else results[0]), cost=0.3)

    return call


def test_requests_that_differ_in_their_payload_are_one_call():
    asked = []
    found = at_once(
        Batcher(), Batch(max_size=3, max_wait_ms=5000), [request({"n": n}) for n in range(3)], answer_all(asked)
    )
    (joint,) = asked
    assert [json.loads(one.content) for one in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert joint.max_output_tokens == 30
    assert "exactly 3 answers" in joint.system
    assert sum(one.prompt_tokens for one in found) == 10
    assert sum(one.completion_tokens for one in found) == 5
    assert sum(one.cost for one in found) == pytest.approx(0.3)


def test_who_waits_in_vain_asks_alone_and_as_it_is():
    asked = []
    (found,) = at_once(Batcher(), Batch(max_size=3, max_wait_ms=1), [request({"n": 1})], answer_all(asked))
    assert json.loads(found.content) == {"n": 1}
    assert asked == [request({"n": 1})]


def test_what_differs_otherwise_is_not_joined():
    asked = []
    batcher, batch = Batcher(), Batch(max_size=2, max_wait_ms=50)
    at_once(
        batcher,
        batch,
        [request({"n": 1}), request({"n": 2}, "Other."), request({"n": 3}, temperature=1)],
        answer_all(asked),
    )
    assert len(asked) == 3


@pytest.mark.parametrize("content", ["no", '{"results": [{"n": 1}]}', '{"results": [1, 2]}', '{"results": {}}', "[]"])
def test_an_answer_that_is_not_one_for_each_tells_everybody_their_share(content):
    found = at_once(
        Batcher(), Batch(max_size=2, max_wait_ms=5000), [request({"n": n}) for n in range(2)], lambda _: reply(content)
    )
    assert [type(one) for one in found] == [UnusableBatchError] * 2
    assert sum(one.share.prompt_tokens for one in found) == 10


def test_an_answer_that_was_cut_off_is_none():
    cut = reply('{"results": [{}, {}]}', stop_reason=StopReason.MAX_TOKENS)
    found = at_once(
        Batcher(), Batch(max_size=2, max_wait_ms=5000), [request({"n": n}) for n in range(2)], lambda _: cut
    )
    assert [type(one) for one in found] == [UnusableBatchError] * 2


def test_what_no_wait_mends_may_be_due_to_one_so_each_asks_alone_with_a_share_of_what_it_cost():
    def refuse(_):
        error = LLMRefusedError("no")
        error.tokens = (5, 3)
        raise error

    batch, two = Batch(max_size=2, max_wait_ms=5000), [request({"n": n}) for n in range(2)]
    found = at_once(Batcher(), batch, two, refuse)
    assert [type(one) for one in found] == [UnusableBatchError] * 2
    assert sorted((one.share.prompt_tokens, one.share.completion_tokens) for one in found) == [(2, 1), (3, 2)]


def test_everybody_hears_of_a_failure_that_may_pass():
    def fail(_):
        raise LLMUnavailableError("later")

    batch, two = Batch(max_size=2, max_wait_ms=5000), [request({"n": n}) for n in range(2)]
    found = at_once(Batcher(), batch, two, fail)
    assert [type(one) for one in found] == [LLMUnavailableError] * 2
    assert found[0] is not found[1]


def test_who_is_not_answered_in_time_is_told_so():
    batcher, batch = Batcher(), Batch(max_size=2, max_wait_ms=5000)
    begun, over = threading.Event(), threading.Event()

    def slow(joint):
        begun.set()
        over.wait(10)
        return reply('{"results": [{}, {}]}')

    first = threading.Thread(target=lambda: batcher.ask(batch, "standard", request({"n": 1}), slow, 10))
    first.start()
    with pytest.raises(SoftDeadline):
        batcher.ask(batch, "standard", request({"n": 2}), slow, 0.2)
    assert begun.is_set()
    over.set()
    first.join(10)


def test_the_joint_contract_is_a_list_of_the_single_ones():
    schema = joined([request({"n": 1}, output_schema=SCHEMA), request({"n": 2}, output_schema=SCHEMA)]).output_schema
    assert schema["properties"]["results"] == {"type": "array", "items": SCHEMA}
    assert joined([request({}), request({})]).output_schema is None


def test_definitions_that_a_contract_refers_to_stand_at_the_top_of_the_joint_one():
    named = {"type": "object", "$defs": {"t": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/t"}}}
    schema = joined([request({}, output_schema=named), request({}, output_schema=named)]).output_schema
    assert Contract(schema).errors({"results": [{"a": 1}]})
    assert not Contract(schema).errors({"results": [{"a": "x"}]})
