"""Tools, budgets, caches and batches through real worker nodes, and what is paid when processes are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter

import pytest

from loomq.errors import GoalFailedError
from loomq.services import costs, explain, inspect
from loomq.services.submit import submit_goal, submit_task
from loomq.store import nodes
from loomq.store.stages import held_by
from loomq.testing import fake_llm, wait_until
from loomq.testing.llm import Rule

TOOLS = '''
import json, os, signal
from pathlib import Path
from loomq.tools.base import SyncToolProvider, ToolProvider, call_context

HERE = Path(__file__).parent.parent
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def once(name):
    """Say whether this is the first time, over all processes."""
    try:
        os.close(os.open(HERE / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Count(SyncToolProvider):
    def __init__(self, kill_at=()):
        self._kill_at = kill_at

    def get_definition(self):
        return {"name": "count", "description": "Count on.", "parameters": SCHEMA}

    def execute_sync(self, arguments):
        n = arguments["n"]
        with (HERE / "calls.txt").open("a") as out:
            out.write(f"{n} {call_context().idempotency_key}\\n")
        if n in self._kill_at and once(f"killed_{n}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return json.dumps({"next": n + 1})


class Leak(ToolProvider):
    def get_definition(self):
        return {"name": "leak", "description": "Leak.", "parameters": {"type": "object"}}

    async def execute(self, arguments):
        return "the key is sk-ant-api03-" + "A1b2C3d4" * 11
'''


def write_worker(project, name, more="", schema="{type: object, properties: {n: {type: integer}}, required: [n]}"):
    project.write("mine/tools.py", TOOLS)
    project.write(
        f"workers/{name}.yaml",
        f"name: {name}\nsystem_prompt: Work as {name}.\noutput_schema: {schema}\n"
        f"retry_backoff: {{initial: 0.05, jitter: false}}\n{more}\n",
    )


def use(project, server, wire="openai", **more):
    project.env = {**server.environment(wire), "HOME": str(project.folder), **more}


class HeldUp:
    """Answer as another rule does, but hold up the first call that comes in one round."""

    def __init__(self, rule, at_round):
        self._rule, self._at_round = rule, at_round
        self.is_asked, self.go_on = threading.Event(), threading.Event()

    def __call__(self, call):
        if rounds_of(call) == self._at_round and not self.is_asked.is_set():
            self.is_asked.set()
            self.go_on.wait(30)
        return self._rule(call)


def rounds_of(call):
    return sum(1 for one in call.body["messages"] if one["role"] == "assistant")


def counting(rounds, *, spend=None):
    """Call the tool so many rounds, with 0, 1, 2, …, and then answer."""

    def answer(call):
        at = rounds_of(call)
        tokens = {"prompt_tokens": 100, "completion_tokens": 10} if spend else {}
        if at < rounds:
            return Rule.model_validate({"tool_calls": [{"name": "count", "arguments": {"n": at}}], **tokens})
        return Rule.model_validate({"json": {"n": at}, **tokens})

    return answer


COUNT = "knowledge_silos:\n  - {name: count, type: tool, provider: mine.tools.Count, config: {kill_at: %s}}"


def made(project):
    return [line.split() for line in (project.folder / "calls.txt").read_text().splitlines()]


@pytest.mark.parametrize("wire", ["anthropic", "openai", "ollama"])
def test_a_tool_loop_whose_process_is_killed_twice_pays_for_no_round_again(project, loom, start_node, wire):
    write_worker(project, "counter", COUNT % "[2, 4]")
    with fake_llm([counting(6)]) as server:
        use(project, server, wire)
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert handle.result(timeout=60) == {"n": 6}
        assert len(server.journal) == 7
    (stage,) = handle.stages()
    assert (stage.attempt, stage.deliveries) == (1, 3)
    tool_calls = made(project)
    assert Counter(int(n) for n, _ in tool_calls) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1}
    assert len({key for _, key in tool_calls}) == 6  # what is made again has the same key
    account = explain.stage(loom, handle.goal_id, "counter")
    assert [(one.number, one.kind) for one in account.rounds if one.kind == "call"] == [(n, "call") for n in range(7)]
    assert stage.notes["rounds"] == 7


def test_a_process_killed_while_the_provider_answers_costs_one_call(project, loom, start_node):
    write_worker(project, "counter", COUNT % "[]")
    answer = HeldUp(counting(4), at_round=2)
    with fake_llm([answer]) as server:
        use(project, server)
        node = start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert answer.is_asked.wait(30)
        (live,) = [one for one, _, _ in nodes.live(loom.database, 10) if one.pid == node.pid]
        (held,) = held_by(loom.database, live.id)
        os.kill(held.pid, signal.SIGKILL)
        answer.go_on.set()
        assert handle.result(timeout=60) == {"n": 4}
        assert len(server.journal) == 5 + 1
    assert len(made(project)) == 4


def test_a_whole_node_killed_between_two_rounds_leaves_the_rest_to_another(project, loom, start_node):
    write_worker(project, "counter", COUNT % "[]")
    answer = HeldUp(counting(3), at_round=1)
    with fake_llm([answer]) as server:
        use(project, server)
        node = start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert answer.is_asked.wait(30)
        node.kill()
        answer.go_on.set()
        start_node("-c", "1")
        assert handle.result(timeout=60) == {"n": 3}
        assert len(server.journal) == 4 + 1


def test_an_answer_that_breaks_its_contract_is_asked_anew_when_its_dead_letter_is_replayed(project, loom, start_node):
    from loomq.services import dead_letters

    write_worker(project, "counter", COUNT % "[]")
    steps = iter([{"json": {"n": "one"}}, {"json": {"n": 1}}])
    with fake_llm([lambda call: Rule.model_validate(next(steps))]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        with pytest.raises(GoalFailedError):
            handle.result(timeout=30)
        dead_letters.replay_dead_letter(str(handle.goal_id), actor="me", loom=loom)
        assert handle.result(timeout=30) == {"n": 1}
        assert len(server.journal) == 2


# Cost, budget, cache


PRICES = "prices:\n  fake-small: {input: 1000, output: 10000}\n"


def test_cost_is_told_by_call_stage_goal_worker_and_day(project, loom, start_node):
    write_worker(project, "counter", COUNT % "[]")
    project.write(".loomq/config.yaml", PRICES)
    with fake_llm([counting(1, spend=True)]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        handle.result(timeout=30)
    view = inspect.detailed(loom, handle.goal_id)
    assert (view.spent.calls, round(view.spent.cost, 6)) == (2, 0.4)
    assert view.tokens == {"prompt_tokens": 200, "completion_tokens": 20}
    assert view.to_json()["stages"][0]["cost"]["usd"] == pytest.approx(0.4)
    rounds = explain.stage(loom, handle.goal_id, "counter").rounds
    assert [round(one.cost, 6) for one in rounds if one.kind == "call"] == [0.2, 0.2]
    for by in costs.GROUPS:
        ((_, spent),) = costs.costs(loom, by, None).rows
        assert round(spent.cost, 6) == 0.4


def test_the_commands_tell_what_it_cost_and_unknown_is_not_zero(project, loom, start_node, loomq):
    write_worker(project, "counter", COUNT % "[]")
    with fake_llm([counting(1, spend=True)]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("counter", {}, budget={"max_tokens": 50_000}, loom=loom)
        handle.result(timeout=30)

        shown, _ = loomq("show", str(handle.goal_id))
        assert "cost        unknown" in shown
        assert "budget      50,000 tokens" in shown
        assert "round 0: tool count" in loomq("explain", str(handle.goal_id), "counter")[0]
        assert "unknown" in loomq("costs", "--by", "model")[0]
        told = json.loads(loomq("costs", "--json")[0])
        assert (told["rows"][0]["worker"], told["rows"][0]["usd"], told["total"]["calls"]) == ("counter", None, 2)
        tried = json.loads(loomq.finish(loomq.start("try", "counter", "--json"))[0])
        assert [turn["role"] for turn in tried["turns"]] == ["assistant", "tool"]
        assert (tried["output"]["value"], tried["cost_usd"]) == ({"n": 1}, None)
        assert tried["token_usage"] == {"prompt_tokens": 200, "completion_tokens": 20}
        shown, _ = loomq.finish(loomq.start("try", "counter"))
        assert "count({" in shown
        assert "cost unknown" in shown


def test_who_answered_in_another_model_s_place_is_told_with_the_reason(project, loom, start_node, loomq):
    write_worker(project, "counter")
    rules = [{"model": "fake-small", "status": 401}, {"json": {"n": 1}}]
    with fake_llm(rules, models=["fake-small", "fake-large"]) as server:
        use(project, server, STANDARD_FALLBACKS="fake-large")
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert handle.result(timeout=30) == {"n": 1}
    for shown in (["show", f"{handle.goal_id}"], ["explain", f"{handle.goal_id}/counter"]):
        told, _ = loomq(*shown)
        assert "answered by fake-large, since fake-small: the OpenAI-compatible server answered 401" in told


def test_a_goal_stops_before_the_call_that_might_break_its_budget(project, loom, start_node):
    write_worker(project, "counter", COUNT % "[]" + "\nmax_output_tokens: 50\nmax_retries: 2")
    project.pipeline("line", "- {name: count, worker_type: counter, input_mapping: {text: goal.instruction}}")
    project.write(".loomq/config.yaml", PRICES)
    with fake_llm([counting(9, spend=True)]) as server:
        use(project, server)
        start_node("-c", "1")
        # A round costs $0.20 and is put aside with some $0.6.
        handle = submit_goal("go", pipeline="line", budget={"max_cost": 1.5}, loom=loom)
        with pytest.raises(GoalFailedError, match="might break the budget") as caught:
            handle.result(timeout=30)
        made_before = len(server.journal)
    assert caught.value.error["retryable"] is False
    view = inspect.detailed(loom, handle.goal_id)
    assert 2 <= made_before < 8
    assert view.spent.cost <= 1.5
    assert (view.spent.calls, view.spent.open_calls) == (made_before, 0)
    assert view.stages[0].attempt == 1


def test_a_limit_on_cost_without_a_price_says_what_to_set(project, loom, start_node):
    write_worker(project, "counter")
    with fake_llm([{"json": {"n": 1}}]) as server:
        use(project, server)
        start_node("-c", "1")
        with pytest.raises(GoalFailedError, match="what fake-small costs is not known") as caught:
            submit_task("counter", {}, budget={"max_cost": 1}, loom=loom).result(timeout=30)
        assert "prices:" in caught.value.error["hint"]
        assert submit_task("counter", {}, budget={"max_tokens": 5000}, loom=loom).result(timeout=30) == {"n": 1}
        assert len(server.journal) == 1


def test_the_same_question_costs_once_over_goals_and_nodes(project, loom, start_node):
    write_worker(project, "counter", "cache: {ttl_seconds: 60}")
    with fake_llm([{"json": {"n": 1}, "prompt_tokens": 9}]) as server:
        use(project, server)
        start_node("-c", "1")
        submit_task("counter", {"a": 1}, loom=loom).result(timeout=30)
        start_node("-c", "1")
        handles = [submit_task("counter", {"a": 1}, loom=loom) for _ in range(6)]
        assert [handle.result(timeout=30) for handle in handles] == [{"n": 1}] * 6
        assert len(server.journal) == 1
        submit_task("counter", {"a": 2}, loom=loom).result(timeout=30)
        assert len(server.journal) == 2
    (stage,) = handles[0].stages()
    assert (stage.notes, stage.spent.cached_calls, stage.spent.calls, stage.spent.cost) == ({"from_cache": 1}, 1, 0, 0)


# Batches and streams


def test_tasks_that_are_due_together_are_joined_in_one_call_and_share_its_cost(project, loom, start_node):
    write_worker(project, "counter", "batch: {max_size: 8, max_wait_ms: 500}")

    def answer(call):
        given = json.loads(call.prompt)
        found = [{"n": one["n"]} for one in given] if isinstance(given, list) else None
        said = {"json": {"results": found} if found is not None else {"n": given["n"]}}
        return Rule.model_validate({**said, "prompt_tokens": 83, "completion_tokens": 16})

    with fake_llm([answer]) as server:
        use(project, server)
        start_node("-P", "threads", "-c", "16")
        handles = [submit_task("counter", {"n": number}, loom=loom) for number in range(16)]
        assert [handle.result(timeout=30) for handle in handles] == [{"n": number} for number in range(16)]
        assert len(server.journal) <= 6
        used = [handle.stages()[0].token_usage for handle in handles]
        assert sum(one["prompt_tokens"] for one in used) == 83 * len(server.journal)
        assert sum(one["completion_tokens"] for one in used) == 16 * len(server.journal)


def test_a_batch_whose_answer_cannot_be_used_is_asked_one_by_one_and_nobody_s_tokens_are_lost(
    project, loom, start_node
):
    write_worker(project, "counter", "batch: {max_size: 4, max_wait_ms: 1000}")

    def answer(call):
        given = json.loads(call.prompt)
        said = {"results": [{"n": 0}]} if isinstance(given, list) else {"n": given["n"]}
        return Rule.model_validate({"json": said, "prompt_tokens": 40, "completion_tokens": 8})

    with fake_llm([answer]) as server:
        use(project, server)
        start_node("-P", "threads", "-c", "4")
        handles = [submit_task("counter", {"n": number}, loom=loom) for number in range(4)]
        assert [handle.result(timeout=30) for handle in handles] == [{"n": number} for number in range(4)]
        calls = len(server.journal)
    (row,) = costs.costs(loom, "worker", None).rows
    assert row[1].prompt_tokens == 40 * calls


def test_who_watches_a_goal_hears_the_text_while_it_is_written(project, loom, start_node):
    write_worker(project, "counter", "stream: true")
    text = 'Let me think about it a little. {"n": 1}'
    with fake_llm([{"text": text}]) as server:
        use(project, server, "ollama")
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert handle.result(timeout=30) == {"n": 1}
        assert server.journal[0].body["stream"] is True
    told = [event.detail["text"] for event in handle.events() if event.kind == "stage_text"]
    assert "".join(told) == text


# What is untrusted


def test_a_model_that_obeys_an_attacker_gets_nothing_but_its_own_tools(project, loom, start_node):
    write_worker(project, "counter", "knowledge_silos:\n  - {name: leak, type: tool, provider: mine.tools.Leak}")
    attack = [
        {"name": "count", "arguments": {"n": 1}},
        {"name": "os.system", "arguments": {"command": "touch /tmp/x"}},
        {"name": "leak", "arguments": {}},
    ]

    def answer(call):
        return Rule.model_validate({"json": {"n": 1}} if rounds_of(call) else {"tool_calls": attack})

    with fake_llm([answer]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        assert handle.result(timeout=30) == {"n": 1}
        results = [one["content"] for one in server.journal[1].body["messages"] if one["role"] == "tool"]
    assert ["there is no tool" in one for one in results] == [True, True, False]
    assert "A1b2C3d4A1b2" not in json.dumps(server.journal[1].body)
    kept = loom.database.call("SELECT message::text FROM tool_results", {})
    assert len(kept) == 3
    assert not [row for row in kept if "A1b2C3d4A1b2" in row[0]]
    assert not (project.folder / "calls.txt").exists()


def test_a_tool_outside_the_allowed_packages_fails_the_task_and_is_not_imported(project, loomq):
    write_worker(project, "good")
    project.write("other/__init__.py", "")
    project.write("other/evil.py", "from pathlib import Path\nPath('evil.txt').touch()\n")
    project.write(
        "workers/bad.yaml",
        "name: bad\nsystem_prompt: x\nknowledge_silos:\n  - {name: t, type: tool, provider: other.evil.Tool}\n",
    )
    told = loomq.finish(loomq.start("validate"), code=2)
    assert "other.evil.Tool" in "".join(told)
    assert not (project.folder / "evil.txt").exists()


def test_a_tool_that_is_not_required_and_cannot_be_built_is_named_in_degraded_modes(project, loom, start_node):
    broken = "{name: count, type: tool, provider: mine.tools.Count, config: {nonsense: 1}, required: %s}"
    write_worker(project, "needs", f"knowledge_silos:\n  - {broken % 'true'}")
    write_worker(project, "likes", f"knowledge_silos:\n  - {broken % 'false'}")
    with fake_llm([{"json": {"n": 1}}]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("likes", {}, loom=loom)
        assert handle.result(timeout=30) == {"n": 1}
        (mode,) = handle.stages()[0].notes["degraded_modes"]
        assert "cannot be built" in mode
        with pytest.raises(GoalFailedError, match=r"tool count: .* cannot be built"):
            submit_task("needs", {}, loom=loom).result(timeout=30)


def test_the_stage_that_waits_is_not_kept_alive_by_what_it_waits_for(project, loom, start_node):
    write_worker(project, "counter", "timeout_seconds: 1\nmax_retries: 0")
    with fake_llm([{"fault": "hang"}]) as server:
        use(project, server)
        start_node("-c", "1")
        handle = submit_task("counter", {}, loom=loom)
        with pytest.raises(GoalFailedError):
            handle.result(timeout=30)
        wait_until(lambda: handle.status() == "failed", "the goal's end")
