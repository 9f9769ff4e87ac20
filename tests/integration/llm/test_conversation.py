"""An LLM worker with tools over real HTTP, on all three wires: rounds, faults of tools, what is paid for."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

import pytest

from loomq.errors import BudgetExceededError, LeaseLost, LLMAnswerError, LLMError, SoftDeadline
from loomq.llm.asking import MAX_TRIES, Asker
from loomq.llm.base import LLMMessage, LLMReply
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm
from loomq.testing.llm import Rule
from loomq.tools.base import SyncToolProvider, ToolProvider, call_context
from loomq.tools.toolbox import Tool, Toolbox
from loomq.workers.conversation import MAX_TOOL_ROUNDS
from loomq.workers.journal import NullJournal, Recalled
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.spec import WorkerSpec

WIRES = ["anthropic", "openai", "ollama"]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


class Double(ToolProvider):
    """Doubles a number."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def get_definition(self):
        return {"name": "double", "description": "Double n.", "parameters": SCHEMA}

    async def execute(self, arguments):
        self.seen.append((arguments["n"], call_context().idempotency_key))
        return json.dumps({"twice": 2 * arguments["n"]})


class Broken(SyncToolProvider):
    """Fails, or takes its time."""

    def get_definition(self):
        return {"name": "broken", "description": "Fails.", "parameters": SCHEMA}

    def execute_sync(self, arguments):
        if arguments["n"] == 0:
            threading.Event().wait(30)
        raise ZeroDivisionError("by zero")


class Boxes:
    """Stands for the process's toolboxes, with tools that the test made."""

    def __init__(self, *tools: ToolProvider) -> None:
        self._tools = tools

    def of(self, worker, silos):
        return Toolbox([Tool.of(tool, "t") for tool in self._tools], worker), []


def through_jsonb(message):
    """Write a message and read it as Postgres does: no NUL, no surrogate, and large numbers whole."""

    def read(text):
        number = float(text)
        return int(number) if number.is_integer() and "e" in text else number

    written = json.dumps(message.model_dump(mode="json"), allow_nan=False)
    assert "\\u0000" not in written
    return json.loads(written, parse_float=read)


class Memory(NullJournal):
    """A journal in memory, which outlives the process that wrote it."""

    def __init__(self) -> None:
        self.replies, self.results, self.kept, self.dropped, self.cache_of = {}, {}, [], [], {}
        self.allowed: float | None = None
        self.lost_after: int | None = None
        self.reserved: dict = {}

    def key(self, at_round, call):
        return f"goal-{at_round}-{call}"

    def recall(self):
        return Recalled(dict(self.replies), dict(self.results), self.allowed is not None)

    def reserve(self, asked):
        if asked.cost is None or asked.cost > self.allowed:
            raise BudgetExceededError("too dear")
        self.reserved[asked.id] = asked

    def unreserve(self, call_id):
        del self.reserved[call_id]

    def keep_reply(self, asked, reply, *, is_usable, is_cached, took_ms):
        self.kept.append((asked.round, reply.cost, is_usable, is_cached))
        if is_usable:
            self.replies[asked.round, asked.request] = LLMReply.model_validate(through_jsonb(reply))
        if self.lost_after is not None and asked.round >= self.lost_after:
            raise LeaseLost("taken back")

    def keep_result(self, at_round, call, message, took_ms):
        self.results[at_round, call] = LLMMessage.model_validate(through_jsonb(message))

    def drop(self, from_round):
        self.dropped.append(from_round)
        self.replies = {key: one for key, one in self.replies.items() if key[0] < from_round}
        self.results = {key: one for key, one in self.results.items() if key[0] < from_round}

    def uncache(self, key):
        self.cache_of.pop(key, None)

    def cached(self, key):
        return self.cache_of.get(key)

    def cache(self, key, reply, ttl_s):
        self.cache_of[key] = reply


@pytest.fixture
def ask(tmp_path):
    """Run a worker against a server, with tools and a journal."""
    pool, loop = HttpPool(), EventLoop()

    def run(server, wire="openai", *tools, journal=None, prices=None, timeout_s=10.0, environment=None, **keys):
        settings = LLMSettings({**server.environment(wire), **(environment or {})}, prices=prices)
        models = LLMWorkers(Asker(Tiers(pool, settings)), loop, Boxes(*tools), tmp_path)
        spec = WorkerSpec.model_validate({"name": "w", "system_prompt": "Work.", **keys})
        return models.run(spec, {"text": "x"}, "standard", timeout_s, journal)

    yield run
    loop.run(pool.aclose(), 5)


def rounds_of(call):
    """How many rounds of tools a request has behind it, whatever the wire."""
    messages = call.body["messages"]
    return sum(1 for one in messages if one["role"] == "assistant")


def script(*steps):
    """Answer the rounds of a conversation one after the other; the last goes on for ever."""

    def answer(call):
        return Rule.model_validate(steps[min(rounds_of(call), len(steps) - 1)])

    return [answer]


def calls(*names_and_numbers):
    return {"tool_calls": [{"name": name, "arguments": {"n": n}} for name, n in names_and_numbers]}


DONE = {"json": {"ok": True}, "prompt_tokens": 7, "completion_tokens": 3}


@pytest.mark.parametrize("wire", WIRES)
def test_the_results_of_a_round_go_back_and_the_tokens_of_all_rounds_add_up(ask, wire):
    first = {**calls(("double", 4), ("double", 5)), "prompt_tokens": 10, "completion_tokens": 2}
    tool = Double()
    with fake_llm(script(first, calls(("double", 8)), DONE)) as server:
        found = ask(server, wire, tool)
        sent = [json.dumps(entry.body) for entry in server.journal]
    assert found.output == {"ok": True}
    assert [n for n, _ in tool.seen] == [4, 5, 8]
    assert '"double"' in sent[0]
    assert r"{\"twice\": 8}" in sent[1]
    assert r"{\"twice\": 10}" in sent[1]
    assert r"{\"twice\": 16}" in sent[2]
    assert found.notes["rounds"] == 3
    assert found.token_usage["prompt_tokens"] >= 17
    assert len({key for _, key in tool.seen}) == 3


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"name": "triple", "arguments": {"n": 1}}, "there is no tool"),
        ({"name": "double", "arguments": {"n": "four"}}, "break the tool's schema"),
        ({"name": "double", "arguments": {"n": 1, "m": 2}}, "break the tool's schema"),
        ({"name": "broken", "arguments": {"n": 1}}, "ZeroDivisionError: by zero"),
        ({"name": "broken", "arguments": {"n": 0}}, "took longer than 0.2 s"),
    ],
)
def test_what_goes_wrong_with_a_tool_the_model_is_told(ask, wire, call, told):
    with fake_llm(script({"tool_calls": [call]}, DONE)) as server:
        assert ask(server, wire, Double(), Broken(), tool_timeout_seconds=0.2).output == {"ok": True}
        sent = json.dumps(server.journal[1].body)
    assert told in sent
    assert r"{\"error\": " in sent


def test_arguments_that_are_no_json_the_model_is_told_and_gets_back_as_it_wrote_them(ask):
    broken = {"tool_calls": [{"name": "double", "arguments": '{"n": 4,'}]}
    with fake_llm(script(broken, DONE)) as server:
        ask(server, "openai", Double())
        body = server.journal[1].body
    assert body["messages"][-2]["tool_calls"][0]["function"]["arguments"] == '{"n": 4,'
    assert "no JSON object" in body["messages"][-1]["content"]


def test_a_tool_that_wants_to_end_the_process_ends_its_call(ask):
    class Leaving(Double):
        async def execute(self, arguments):
            sys.exit(3)

    with fake_llm(script(calls(("double", 1)), DONE)) as server:
        assert ask(server, "openai", Leaving()).output == {"ok": True}
        assert "SystemExit: 3" in server.journal[1].body["messages"][-1]["content"]
        assert ask(server, "openai", Double()).output == {"ok": True}


@pytest.mark.parametrize("found", ["a\x00b \ud800", '{"n": 1e400, "m": NaN}', "9" * 5000])
def test_what_no_database_holds_goes_on_as_it_is_written_down(ask, found):
    """Whoever takes the task up reads from the journal what the one before it went on with, and so asks the same."""

    class Odd(Double):
        async def execute(self, arguments):
            self.seen.append((arguments["n"], ""))
            return found

    journal, tool = Memory(), Odd()
    with fake_llm(script({**calls(("double", 1)), "text": "Here: \x00"}, calls(("double", 2)), DONE)) as server:
        journal.lost_after = 1
        with pytest.raises(LeaseLost):
            ask(server, "openai", tool, journal=journal)
        journal.lost_after = None
        assert ask(server, "openai", tool, journal=journal).notes["reused"] == 2
        assert len(server.journal) == 3
    assert [n for n, _ in tool.seen] == [1, 2]


def test_independent_calls_of_one_round_run_side_by_side(ask):
    barrier = asyncio.Barrier(3)

    class Meeting(Double):
        async def execute(self, arguments):
            await asyncio.wait_for(barrier.wait(), 5)
            return "met"

    with fake_llm(script(calls(("double", 1), ("double", 2), ("double", 3)), DONE)) as server:
        assert ask(server, "openai", Meeting()).output == {"ok": True}


@pytest.mark.parametrize("wire", WIRES)
def test_after_ten_rounds_of_tools_the_model_has_to_answer(ask, wire):
    def answer(call):
        if rounds_of(call) == MAX_TOOL_ROUNDS:
            return Rule(json={"ok": True})
        return Rule.model_validate(calls(("double", rounds_of(call))))

    tool = Double()
    with fake_llm([answer]) as server:
        assert ask(server, wire, tool).output == {"ok": True}
        last = server.journal[-1].body
        assert len(server.journal) == MAX_TOOL_ROUNDS + 1
    assert len(tool.seen) == MAX_TOOL_ROUNDS
    assert last.get("tool_choice") in ({"type": "none"}, "none", None)
    assert ("tools" in last) == (wire != "ollama")


@pytest.mark.parametrize("wire", WIRES)
def test_who_asks_for_an_eleventh_round_does_not_get_it(ask, wire):
    tool = Double()
    with fake_llm(script(calls(("double", 1)))) as server:
        with pytest.raises(LLMError, match="still asked for tools after 10 rounds") as caught:
            ask(server, wire, tool)
        assert len(server.journal) == MAX_TOOL_ROUNDS + 1
    assert len(tool.seen) == MAX_TOOL_ROUNDS
    assert not caught.value.retryable


def test_a_tool_that_nobody_offered_is_no_answer(ask):
    journal = Memory()
    with fake_llm(script(calls(("double", 1)))) as server, pytest.raises(LLMAnswerError, match="has none") as caught:
        ask(server, "openai", journal=journal)
    assert caught.value.retryable
    assert journal.dropped == [0]


def test_a_long_result_is_cut_and_says_so(ask):
    class Long(Double):
        async def execute(self, arguments):
            return "x" * 100_000

    with fake_llm(script(calls(("double", 1)), DONE)) as server:
        ask(server, "openai", Long())
        content = server.journal[1].body["messages"][-1]["content"]
    assert len(content) < 66_000
    assert content.endswith("[cut off here: the result has 100,000 characters]")


def test_a_conversation_that_outgrows_the_limit_ends_before_the_call(ask):
    class Long(Double):
        async def execute(self, arguments):
            return "x" * 3000

    with fake_llm(script(calls(("double", 1)), DONE)) as server:
        with pytest.raises(LLMError, match="with what its tools gave, is some") as caught:
            ask(server, "openai", Long(), max_input_tokens=900)
        assert len(server.journal) == 1
    assert caught.value.kind == "context_overflow"


@pytest.mark.parametrize("wire", WIRES)
def test_a_prompt_over_its_limit_is_not_sent(ask, wire):
    with fake_llm() as server:
        with pytest.raises(LLMError, match="max_input_tokens is 5"):
            ask(server, wire, max_input_tokens=5)
        assert len(server.journal) == 0


def test_the_deadline_holds_in_the_middle_of_a_tool(ask):
    with fake_llm(script(calls(("broken", 0)), DONE)) as server:
        begun = time.monotonic()
        with pytest.raises(SoftDeadline):
            ask(server, "openai", Broken(), timeout_s=0.5)
        assert time.monotonic() - begun < 5


def test_a_model_s_thinking_goes_back_to_it_unchanged(ask):
    """The fake refuses a turn whose thinking it did not sign, as the real one does."""
    first = {**calls(("double", 1)), "thinking": "Let me double it.", "text": "One moment."}
    with fake_llm(script(first, DONE)) as server:
        assert ask(server, "anthropic", Double()).output == {"ok": True}
        blocks = server.journal[1].body["messages"][1]["content"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]


def test_a_turn_that_was_paused_goes_on(ask):
    with fake_llm([{"text": "Wait", "stop": "pause", "times": 1}, DONE]) as server:
        assert ask(server, "anthropic").output == {"ok": True}
        assert [one["role"] for one in server.journal[1].body["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_of_tool_calls_is_what_the_whole_reply_would_be(ask, wire):
    tool, heard = Double(), []

    class Telling(Memory):
        def tell(self, detail):
            heard.append((detail["round"], detail["text"]))

    first = {**calls(("double", 4), ("double", 5)), "text": "Let me see."}
    with fake_llm(script(first, {"text": '{"ok": true} is what I say'})) as server:
        found = ask(server, wire, tool, journal=Telling(), stream=True)
        assert all(entry.body["stream"] for entry in server.journal)
    assert (found.output, found.notes["repair"]) == ({"ok": True}, "surrounded")
    assert [n for n, _ in tool.seen] == [4, 5]
    assert "".join(text for number, text in heard if number == 0) == "Let me see."
    assert "".join(text for number, text in heard if number == 1) == '{"ok": true} is what I say'


# The journal


@pytest.mark.parametrize("wire", WIRES)
def test_whoever_takes_the_task_up_again_pays_for_no_round_twice(ask, wire):
    journal, tool = Memory(), Double()
    rules = script(calls(("double", 1)), calls(("double", 2)), calls(("double", 3)), DONE)
    with fake_llm(rules) as server:
        journal.lost_after = 1
        with pytest.raises(LeaseLost):
            ask(server, wire, tool, journal=journal)
        assert len(server.journal) == 2
        journal.lost_after = None
        found = ask(server, wire, tool, journal=journal)
        assert len(server.journal) == 4
    assert found.notes["reused"] == 2
    assert [n for n, _ in tool.seen] == [1, 2, 3]
    assert found.notes["rounds"] == 4


def test_a_tool_s_call_that_is_made_again_has_the_same_key(ask):
    journal, tool = Memory(), Double()
    with fake_llm(script(calls(("double", 1)), DONE)) as server:
        ask(server, "ollama", tool, journal=journal)
        journal.results.clear()
        ask(server, "ollama", tool, journal=journal)
    assert len({key for _, key in tool.seen}) == 1


def test_another_prompt_is_another_round(ask):
    journal = Memory()
    with fake_llm([DONE]) as server:
        ask(server, journal=journal)
        ask(server, journal=journal, system_prompt="Work otherwise.")
        assert len(server.journal) == 2


def test_a_result_belongs_to_the_call_that_asked_for_it_and_not_to_its_place(ask):
    """Servers without ids number the calls of each round alike."""
    journal, tool = Memory(), Double()
    with fake_llm(script(calls(("double", 1)), DONE)) as server:
        ask(server, "ollama", tool, journal=journal)
    journal.replies.clear()
    with fake_llm(script(calls(("double", 2)), DONE)) as server:
        ask(server, "ollama", tool, journal=journal)
        assert '{"twice": 4}' in server.journal[1].body["messages"][-1]["content"]
    assert [n for n, _ in tool.seen] == [1, 2]


def test_a_conversation_without_an_end_asks_anew_where_it_went_wrong(ask):
    journal = Memory()
    with fake_llm(script(calls(("double", 1)))) as server, pytest.raises(LLMError):
        ask(server, "openai", Double(), journal=journal)
    assert journal.dropped == [MAX_TOOL_ROUNDS]
    with fake_llm([DONE]) as server:
        found = ask(server, "openai", Double(), journal=journal)
        assert (len(server.journal), found.notes["reused"]) == (1, MAX_TOOL_ROUNDS)


def test_an_answer_without_an_object_is_dropped_so_that_the_next_attempt_asks_anew(ask):
    journal = Memory()
    with fake_llm([{"text": "no idea", "times": 1}, DONE]) as server:
        with pytest.raises(LLMAnswerError):
            ask(server, journal=journal)
        assert journal.dropped == [0]
        assert ask(server, journal=journal).output == {"ok": True}


# Cost


PRICES = {"fake-small": {"input": 2, "output": 10}}


def test_the_cost_of_all_rounds_adds_up_and_an_unknown_price_is_none(ask):
    from loomq.llm.pricing import PriceEntry

    prices = {name: PriceEntry.model_validate(entry) for name, entry in PRICES.items()}
    first = {**calls(("double", 1)), "prompt_tokens": 1_000_000, "completion_tokens": 100_000}
    journal = Memory()
    with fake_llm(script(first, DONE)) as server:
        ask(server, "openai", Double(), journal=journal, prices=prices)
        assert [round(cost, 6) for _, cost, _, _ in journal.kept] == [3.0, 0.000044]
        unknown = Memory()
        ask(server, "openai", Double(), journal=unknown)
        assert [cost for _, cost, _, _ in unknown.kept] == [None, None]


def test_a_call_that_might_break_the_budget_is_not_made(ask):
    from loomq.llm.pricing import PriceEntry

    prices = {name: PriceEntry.model_validate(entry) for name, entry in PRICES.items()}
    journal = Memory()
    journal.allowed = 0.001
    with fake_llm([DONE]) as server:
        with pytest.raises(BudgetExceededError):
            ask(server, journal=journal, prices=prices, max_output_tokens=1000)
        assert len(server.journal) == 0
        assert ask(server, journal=journal, prices=prices, max_output_tokens=50).output == {"ok": True}


def test_a_call_that_was_refused_gives_back_what_was_put_aside_and_one_that_broke_off_does_not(ask):
    from loomq.llm.pricing import PriceEntry

    prices = {name: PriceEntry.model_validate(entry) for name, entry in PRICES.items()}
    for rule, left in (({"status": 401}, 0), ({"fault": "cut", "text": "x" * 99}, MAX_TRIES)):
        journal = Memory()
        journal.allowed = 1.0
        with fake_llm([rule]) as server, pytest.raises(LLMError):
            ask(server, journal=journal, prices=prices)
        assert len(journal.reserved) == left


def test_a_stand_in_that_is_too_dear_is_not_asked_and_the_fault_is_the_first_one(ask):
    from loomq.llm.pricing import PriceEntry

    prices = {"fake-small": PriceEntry(input=2, output=10), "fake-large": PriceEntry(input=2000, output=10000)}
    journal = Memory()
    journal.allowed = 0.01
    with fake_llm([{"status": 401}], models=["fake-small", "fake-large"]) as server:
        server_says = {"STANDARD_FALLBACKS": "fake-large"}
        with pytest.raises(LLMError) as caught:
            ask(server, journal=journal, prices=prices, max_output_tokens=100, environment=server_says)
        assert len(server.journal) == 1
    assert (caught.value.kind, journal.reserved) == ("auth", {})


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
def test_a_refusal_is_paid_for_and_written_down(ask, wire):
    journal = Memory()
    rule = {"fault": "refusal", "prompt_tokens": 9, "completion_tokens": 1}
    with fake_llm([rule]) as server, pytest.raises(LLMError) as caught:
        ask(server, wire, journal=journal)
    assert caught.value.tokens == (9, 1)
    assert [(number, usable) for number, _, usable, _ in journal.kept] == [(0, False)]


# The cache of answers


def test_the_same_question_is_answered_from_the_cache_once_its_answer_was_accepted(ask):
    journal = Memory()
    keys = {"cache": {"ttl_seconds": 60}}
    with fake_llm([DONE]) as server:
        first = ask(server, journal=journal, **keys)
        assert not journal.cache_of
        first.accept()
        journal.replies.clear()
        again = ask(server, journal=journal, **keys)
        assert len(server.journal) == 1
        ask(server, journal=journal, **keys, system_prompt="Other.")
        ask(server, journal=journal, **keys, output_schema={"type": "object"})
        journal.replies.clear()
        ask(server, "anthropic", journal=journal, **keys)
        assert len(server.journal) == 4
    assert (again.output, again.notes) == ({"ok": True}, {"from_cache": 1})
    assert again.token_usage == {"prompt_tokens": 0, "completion_tokens": 0}
    assert journal.kept[1] == (0, 0.0, True, True)


def test_what_a_stand_in_said_is_told_and_not_kept_as_the_tier_s_own_answer(ask):
    journal = Memory()
    keys = {"cache": {"ttl_seconds": 60}, "environment": {"STANDARD_FALLBACKS": "fake-large"}}
    rules = [{"model": "fake-small", "status": 401, "message": "no such key", "times": 1}, DONE]
    with fake_llm(rules, models=["fake-small", "fake-large"]) as server:
        found = ask(server, journal=journal, **keys)
        found.accept()
        assert not journal.cache_of
        journal.replies.clear()
        assert ask(server, journal=journal, **keys).model_used == "fake-small"
    (told,) = found.notes["stood_in"]
    assert (found.model_used, told.startswith("fake-large, since fake-small: ")) == ("fake-large", True)
    assert "401" in told


def test_without_the_key_in_its_file_a_worker_takes_nothing_from_the_cache(ask):
    journal = Memory()
    with fake_llm([DONE]) as server:
        ask(server, journal=journal, cache={"ttl_seconds": 60}).accept()
        journal.replies.clear()
        ask(server, journal=journal).accept()
        assert len(server.journal) == 2
    assert len(journal.cache_of) == 1
