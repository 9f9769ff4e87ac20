"""What a step tells its model of what was before: all of it, or a checkpoint and the last of it."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from loomq.errors import BrokerUnavailableError
from loomq.llm.base import LLMReply, StopReason
from loomq.llm.tokens import request_tokens
from loomq.messages import CheckpointState
from loomq.orchestrator import prompt
from loomq.orchestrator.decompose import Decompose
from loomq.orchestrator.explained import Kept, prompt_of
from loomq.orchestrator.history import Round, TaskRecord, entries_of
from loomq.orchestrator.memory import FIRST_CHECKPOINT_ROUND, About, Memory
from loomq.orchestrator.tasks import Subtask

GOAL = UUID(int=7)
ABOUT = About(GOAL, "find it", {"where": "here"})


class Store:
    """A store in this process, which may be out of reach."""

    def __init__(self):
        self.states, self.is_out = [], False

    def latest(self, goal_id):
        if self.is_out:
            raise BrokerUnavailableError("it is away")
        return self.states[-1] if self.states else None

    def save(self, state, ttl_s):
        if self.is_out:
            raise BrokerUnavailableError("it is away")
        self.states.append(state)


def rounds(count, size=300):
    """Make one round of so many tasks, the second of which failed."""
    tasks = tuple(Subtask(f"t{number}", "look", {"q": str(number)}) for number in range(count))
    records = tuple(
        TaskRecord(task.name, 1, "look", f"id{number}", "failed", error={"message": "no luck"})
        if number == 1
        else TaskRecord(task.name, 1, "look", f"id{number}", "done", {"found": f"{number} " + "x" * size})
        for number, task in enumerate(tasks)
    )
    return [Round(1, tasks, records)]


def reply(said, stop=StopReason.END_TURN):
    content = said if isinstance(said, str) else json.dumps(said)
    return LLMReply(content=content, model="m", prompt_tokens=1, completion_tokens=1, stop_reason=stop)


def minutes(text="in short"):
    return reply({"executive_summary": text, "open_issues": ["t1"], "decisions_made": ["go"]})


@pytest.fixture
def remember(frozen):
    """Make a memory of some rounds; gives it with its store and the calls that it made."""

    def make(history, threshold, *, window=2, answers=None, store=None):
        rules = {"token_threshold": threshold, "recent_window": window}
        spec = frozen.spec.model_copy(update={"checkpoint": type(frozen.spec.checkpoint)(**rules)})
        calls = []

        def ask(request, number):
            calls.append((number, request))
            return answers[len(calls) - 1] if answers else minutes(f"summary {len(calls)}")

        store = store or Store()
        changed = frozen.model_copy(update={"spec": spec})
        return Memory(changed, ABOUT, entries_of(history), store, ask), store, calls

    return make


def texts(messages):
    return [(message.role, message.content) for message in messages]


def test_a_short_conversation_is_told_whole(remember):
    memory, store, calls = remember(rounds(3), 50_000)
    told = texts(memory.messages("system", "Go."))

    assert [role for role, _ in told] == ["user", "assistant", "user"]
    assert told[0][1].startswith('The goal:\n{"instruction": "find it", "context": {"where": "here"}}')
    assert json.loads(told[1][1])[0] == {"id": "t0", "worker_type": "look", "payload": {"q": "0"}}
    assert '"task": "t1", "worker_type": "look", "status": "failed", "error": "no luck"' in told[2][1]
    assert told[2][1].endswith("\n\nGo.")
    assert (store.states, calls, memory.made) == ([], [], 0)


def test_a_long_one_is_a_checkpoint_and_the_last_interactions_word_by_word(remember):
    memory, store, calls = remember(rounds(12), 1200)
    told = texts(memory.messages("s" * 300, "Go."))

    assert [number for number, _ in calls] == [FIRST_CHECKPOINT_ROUND + 2 * at for at in range(len(calls))]
    assert len(calls) == memory.made == len(store.states) > 1
    assert [role for role, _ in told] == ["user"]
    assert f"summary {len(calls)}" in told[0][1]
    assert "10 xxx" in told[0][1]
    assert "11 xxx" in told[0][1]
    assert "9 xxx" not in told[0][1]
    last = store.states[-1]
    assert (last.goal_id, last.original_instruction, last.covers) == (GOAL, "find it", 11)
    assert [task["task"] for task in last.completed_tasks] == [f"t{number}" for number in range(10)]
    assert last.completed_tasks[1]["status"] == "failed"
    assert last.pending_tasks == ()
    assert store.states[0].context_token_count > 1200
    assert {state.until for state in store.states} == {11}
    for _, request in calls:
        assert request_tokens(request) <= 1200 + 300


def test_each_checkpoint_is_made_of_the_one_before(remember):
    memory, _, calls = remember(rounds(12), 1200)
    memory.messages("s" * 300, "Go.")

    assert "summary 1" in calls[1][1].messages[0].content
    assert "0 xxx" in calls[0][1].messages[0].content
    assert "0 xxx" not in calls[1][1].messages[0].content


def test_what_was_half_compressed_is_compressed_to_its_end_with_the_same_words(remember):
    memory, store, calls = remember(rounds(12), 1200)
    told = memory.messages("s" * 300, "Go.")

    half = Store()
    half.states = store.states[:1]
    again, _, asked = remember(rounds(12), 1200, store=half, answers=[minutes("summary 2")])
    assert again.messages("s" * 300, "Go.") == told
    assert asked == calls[1:]


def test_another_process_goes_on_from_the_checkpoint_and_asks_for_none(remember):
    memory, store, calls = remember(rounds(12), 1200)
    told = memory.messages("s" * 300, "Go.")

    again, _, asked = remember(rounds(12), 1200, store=store)
    assert again.messages("s" * 300, "Go.") == told
    assert asked == []
    assert calls


@pytest.mark.parametrize("answer", ["prose", {"executive_summary": 7}, {"summary": "x"}])
def test_minutes_that_are_no_good_are_replaced_by_what_the_rows_say(remember, answer):
    memory, store, _ = remember(rounds(8), 1200, answers=[reply(answer)] * 20)
    memory.messages("s" * 300, "Go.")

    assert (
        "6 tasks have ended, 5 of them with a result. Beginnings of their results: "
        in store.states[-1].executive_summary
    )
    assert memory.lost == len(store.states)
    assert store.states[-1].open_issues == ("t1: no luck",)


def test_minutes_that_were_cut_off_are_no_good(remember):
    cut = reply({"executive_summary": "x", "open_issues": [], "decisions_made": []}, StopReason.MAX_TOKENS)
    memory, store, _ = remember(rounds(8), 1200, answers=[cut] * 20)
    memory.messages("s" * 300, "Go.")
    assert store.states[-1].executive_summary != "x"


def test_a_store_that_is_away_costs_calls_and_nothing_else(remember):
    store = Store()
    store.is_out = True
    memory, _, calls = remember(rounds(12), 1200, store=store)
    told = texts(memory.messages("s" * 300, "Go."))

    assert f"summary {len(calls)}" in told[0][1]


def test_a_checkpoint_of_more_than_there_is_counts_for_nothing(remember):
    store = Store()
    store.states = [CheckpointState(goal_id=GOAL, original_instruction="", executive_summary="old", covers=99)]
    memory, _, calls = remember(rounds(3), 50_000, store=store)
    assert "old" not in memory.messages("s", "Go.")[0].content
    assert calls == []


def test_results_that_are_too_long_even_so_are_told_in_part_and_said_to_be(remember):
    memory, _, calls = remember(rounds(2, size=9_000), 1500, window=5)
    told = texts(memory.messages("system", "Go."))

    assert calls == []
    assert memory.shortened == 1
    assert "characters more, left out here]" in told[2][1]
    request = prompt.request(memory.frozen, "system", memory.messages("system", "Go."))
    assert request_tokens(request) <= 1600


def test_the_prompt_of_a_step_is_told_afterwards_from_the_checkpoint_that_it_had(frozen):
    rules = type(frozen.spec.checkpoint)(token_threshold=1500, recent_window=2)
    changed = frozen.model_copy(update={"spec": frozen.spec.model_copy(update={"checkpoint": rules})})
    state = CheckpointState(
        goal_id=GOAL, original_instruction="", executive_summary="what was", covers=11, checkpoint_number=2
    )
    later = state.model_copy(update={"covers": 50, "checkpoint_number": 3})
    program = Decompose(changed, ABOUT, 2, rounds(12), Kept())

    found, fault = prompt_of(program, [state, later])
    assert fault is None
    assert "what was" in found.messages[0].content
    assert found.system.startswith("Mind the gap.\n\n")

    found, fault = prompt_of(program, [])
    assert found is None
    assert "is gone" in fault


def test_what_fits_together_is_told_whole_and_long_results_have_what_short_ones_leave(remember):
    memory, _, _ = remember(rounds(3), 50_000)
    parts = [("user", "x" * 60)] * 10 + [("user", "y" * 3000)]
    assert memory._cut(parts, 1300) == parts
    cut = memory._cut(parts, 700)
    assert cut[:10] == parts[:10]
    assert 1300 < len(cut[10][1]) < 1700


def test_minutes_that_are_no_good_are_asked_for_once_more(remember):
    memory, store, calls = remember(rounds(8), 1200, answers=[reply("prose"), *[minutes("second")] * 9])
    memory.messages("s" * 300, "Go.")
    assert store.states[0].executive_summary == "second"
    assert calls[1][0] == FIRST_CHECKPOINT_ROUND + 1
    assert "Write the minutes once more" in calls[1][1].messages[-1].content
    assert memory.lost == 0


def test_the_number_of_tasks_does_not_make_a_checkpoint_long():
    tasks = tuple({"task": f"task_number_{n}", "status": "completed" if n % 2 else "failed"} for n in range(5000))
    state = CheckpointState(goal_id=GOAL, original_instruction="", executive_summary="x", completed_tasks=tasks)
    told = prompt.checkpoint_text(state)
    assert len(told) < 4000
    assert '"count": 2500' in told
    assert "task_number_4999" in told
