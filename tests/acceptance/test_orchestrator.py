"""Orchestrators through a real node: a goal in words, split by a model, done by workers, put together."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from itertools import islice

import pytest

from loomq.errors import GoalCancelledError, GoalFailedError, GoalStateError, UnknownNameError, WaitTimeoutError
from loomq.messages import TaskStatus
from loomq.services import explain, inspect
from loomq.services.dead_letters import replay_dead_letter
from loomq.services.sessions import create_session, get_session
from loomq.services.submit import GoalHandle, submit_goal
from loomq.store import checkpoints, rounds
from loomq.testing import fake_llm, wait_until
from loomq.testing.llm import FakeServer, Rule
from tests.acceptance.conftest import Program

NODE = ("-c", "4")
RUNNING: dict[str, FakeServer] = {}
LONG = "The quick brown fox jumps over the lazy dog. " * 40


def look(q, **more):
    return {"worker_type": "look", "payload": {"q": q}, **more}


#: By the first word of the goal: the plan of each round; after the last, nothing more is asked for.
PLANS: dict[str, list] = {
    "plain": [[look("one"), look("two", rationale="it may differ")]],
    "rounds": [
        [look("one", id="first"), look("fail", id="second")],
        [
            look({"$from": "first.output.found"}, id="third"),
            look({"$from": "goal.context.word"}, id="fourth", depends_on=["third"], priority="high"),
        ],
    ],
    "unknown": [[{"worker_type": "lok", "payload": {"q": "x"}}]],
    "contract": [[look(7)]],
    "prose": ["I would rather not."],
    "stubborn": [[{"worker_type": "lok", "payload": {}}]],
    "endless": [[look(f"r{number}", id=f"t{number}")] for number in range(1, 30)],
    "many": [[look(str(number)) for number in range(100)]],
    "dag": [[
        look("a", id="a"), look("fail", id="b"), look("c", id="c", depends_on=[0]), look("d", id="d", depends_on=["b"]),
    ]],
    "doomed": [[look("fail"), look("fail")]],
    "mute": [[look("one")]],
    "cached": [[look("one")]],
    "shaped": [[look({"$from": "goal.context.word"})]],
    "long": [[look(f"long {number}", id=f"t{number}") for number in range(6)], [look("one")]],
    "slow": [[look("wait"), look("one")]],
    "boss": [[
        {"worker_type": "helper", "payload": {"instruction": "plain for the boss", "context": {}}},
        {"worker_type": "twice", "payload": {"q": "two"}},
    ]],
    "mended": [[look("one")]],
    "erring": [[{"worker_type": "lok", "payload": {"q": "x"}}]],
    "spend": [[{"worker_type": "talk", "payload": {"q": "x"}}, look("one")]],
}  # fmt: skip
MENDED: list[bool] = []
_INSTRUCTION = re.compile(r'"instruction": "(\w+)')


def answer(call):
    """Answer by what the goal is called."""
    found = _INSTRUCTION.search(call.text)
    name = found[1] if found else ""
    if name == "mended" and not MENDED:
        said = {"json": [{"worker_type": "lok"}]}
    elif "You talk." in call.system:
        said = {"json": {"said": "so"}, "prompt_tokens": 100, "completion_tokens": 10}
    elif "You keep the minutes" in call.system:
        said = {"json": {"executive_summary": f"minutes of {name}", "open_issues": [], "decisions_made": ["go on"]}}
    elif "You put the results of tasks together" in call.system:
        conclusion = {"synthesis": f"all of {name}", "confidence": "high", "conflicts": [], "gaps": ["the rest"]}
        said = {"text": "I do not know."} if name == "mute" else {"json": conclusion}
    elif "The plan cannot be used" in call.text and name != "stubborn":
        said = {"text": f"Sure:\n```json\n{json.dumps([look('one')])}\n```"}
    else:
        at = next((number - 1 for number in range(2, 21) if f"This is round {number} of" in call.prompt), 0)
        plan = PLANS[name][at] if at < len(PLANS[name]) else []
        said = {"text": plan} if isinstance(plan, str) else {"json": plan}
    return Rule.model_validate(said)


@pytest.fixture(scope="module", autouse=True)
def provider():
    """The one provider of this module, up before its node."""
    with fake_llm([answer]) as server:
        RUNNING["provider"] = server
        yield server


def orchestrator(project, name, more="", workers="[{name: look}]"):
    project.write(
        f"pipelines/{name}.yaml",
        f"name: {name}\nkind: orchestrator\navailable_workers: {workers}\n"
        f"retry_backoff: {{initial: 0.05, jitter: false}}\n{more}\n",
    )


def stock(project):
    """Write a worker that finds, fails or waits, one that talks, and an orchestrator for each way of going about it."""
    project.worker(
        "look",
        """
        q = payload["q"]
        notes = Path("spans.txt")
        if q == "fail":
            raise BackendError("there is nothing")
        if q == "wait":
            while not Path("go.txt").exists():
                time.sleep(0.02)
        if q.startswith("long"):
            return {"output": {"found": q + " " + "%s"}}
        with notes.open("a") as out:
            out.write(f"{time.monotonic()} +\\\\n")
            out.flush()
            time.sleep(0.01)
            out.write(f"{time.monotonic()} -\\\\n")
        return {"output": {"found": q + "!"}}
        """.replace("\\\\", "\\")
        % LONG,
        input_schema="{type: object, properties: {q: {type: string}}, required: [q]}",
        output_schema="{type: object, properties: {found: {type: string}}}",
        max_retries="0",
    )
    project.write("workers/talk.yaml", "name: talk\nsystem_prompt: You talk.\n")
    project.pipeline("twice", "  - {name: only, worker_type: look, input_mapping: {q: goal.context.q}}\n")
    project.pipeline(
        "fan", "  - {name: each, worker_type: look, for_each: goal.context.qs, input_mapping: {q: item}}\n"
    )
    orchestrator(project, "research", "synthesis: llm")
    orchestrator(project, "narrow", "max_concurrent_tasks: 2")
    orchestrator(project, "keeper", "plan_cache: {ttl_seconds: 600}")
    orchestrator(project, "shaper", "plan_cache: {ttl_seconds: 600, match: shape}")
    for store in ("postgres", "redis"):
        rules = f"{{token_threshold: 1800, recent_window: 2, store: {store}}}"
        orchestrator(project, f"long_{store}", f"synthesis: llm\ncheckpoint: {rules}")
    orchestrator(project, "single", "max_concurrent_goals: 1")
    orchestrator(project, "hasty", "timeout_seconds: 1.5")
    orchestrator(project, "helper", "synthesis: llm")
    orchestrator(project, "chief", workers="[{name: helper}, {name: twice}]")
    orchestrator(project, "spender", workers="[{name: talk}, {name: look}]")
    project.env = {**RUNNING["provider"].environment("openai"), "HOME": str(project.folder)}


@pytest.fixture
def ask(shop):
    """Hand a goal in."""
    return lambda text, pipeline="research", **more: submit_goal(text, pipeline=pipeline, loom=shop.loom, **more)


def asked(provider, text):
    """List the requests that were made for a goal."""
    return [body for entry in provider.journal if text in (body := json.dumps(entry.body))]


def outputs(result):
    return {one["task"]: one["output"]["found"] for one in result["succeeded"]}


def test_a_goal_in_words_is_split_done_and_put_together(ask, provider):
    handle = ask("plain search")

    result = handle.result(timeout=20)

    assert outputs(result) == {"look_1": "one!", "look_2": "two!"}
    assert {key: result[key] for key in ("synthesis", "confidence", "conflicts", "gaps", "failed")} == {
        "synthesis": "all of plain",
        "confidence": "high",
        "conflicts": [],
        "gaps": ["the rest"],
        "failed": [],
    }
    first = result["succeeded"][0]
    assert (first["worker_type"], first["round"], first["model_used"]) == ("look", 1, None)
    assert result["metadata"] | {"total_processing_time_ms": 0} == {
        "total": 2, "succeeded": 2, "failed": 0, "rounds": 1, "total_processing_time_ms": 0, "models_used": [],
        "total_tokens": 0,
    }  # fmt: skip
    assert [(stage.name, stage.status) for stage in handle.stages()] == [
        ("plan_1", "completed"), ("tasks_1", "completed"), ("plan_2", "completed"), ("tasks_2", "skipped"),
        ("plan_3", "skipped"), ("tasks_3", "skipped"), ("synthesis", "completed"),
    ]  # fmt: skip
    system = provider.journal[0].body["messages"][0]["content"]
    assert '"worker_type": "look"' in system
    assert '"output_keys": ["found"]' in system


def test_the_next_round_is_told_what_failed_and_takes_values_of_earlier_results(ask, provider):
    result = ask("rounds please", context={"word": "given"}).result(timeout=20)

    assert outputs(result) == {"first": "one!", "third": "one!!", "fourth": "given!"}
    ((failed,),) = (result["failed"],)
    assert (failed["task"], failed["status"]) == ("second", "failed")
    assert "there is nothing" in failed["error"]["message"]
    told = [text for text in asked(provider, "rounds please") if "This is round 2 of 3" in text]
    assert len(told) == 1
    assert "there is nothing" in told[0]
    assert "one!" in told[0]


@pytest.mark.parametrize(
    ("goal", "fault"),
    [
        ("unknown", 'no worker is called \\"lok\\"; did you mean \\"look\\"?'),
        ("contract", 'payload of look: q: 7 is not of type \\"string\\"'),
        ("prose", "is no JSON object"),
    ],
)
def test_a_wrong_plan_goes_back_to_the_model_once_with_every_fault(ask, shop, provider, goal, fault):
    handle = ask(f"{goal} plan")

    assert outputs(handle.result(timeout=20)) == {"look_1": "one!"}
    corrected = [text for text in asked(provider, f"{goal} plan") if "The plan cannot be used" in text]
    assert fault in corrected[0].replace('\\\\\\"', '\\"')
    (plan, *_) = handle.stages()
    assert plan.notes["refused_plan"]


def test_a_plan_that_is_wrong_twice_fails_the_goal_by_name(ask, provider):
    with pytest.raises(GoalFailedError, match='task 0: worker_type: no worker is called "lok"') as raised:
        ask("stubborn plan").result(timeout=20)

    assert raised.value.error["type"] == "InvalidPlanError"
    assert "loomq explain" in raised.value.error["hint"]
    assert len(asked(provider, "stubborn plan")) == 2


def test_a_model_that_always_asks_for_more_is_stopped_by_max_rounds(ask, provider):
    result = ask("endless work").result(timeout=30)

    assert outputs(result) == {"t1": "r1!", "t2": "r2!", "t3": "r3!"}
    assert result["metadata"]["rounds"] == 3
    assert len(asked(provider, "endless work")) == 4  # three plans and the conclusion


def test_a_hundred_tasks_are_all_done_and_never_more_than_the_window_at_once(ask, shop):
    spans = shop.project.folder / "spans.txt"
    spans.unlink(missing_ok=True)

    result = ask("many things", "narrow").result(timeout=60)

    assert sorted(outputs(result).values(), key=len) == sorted((f"{n}!" for n in range(100)), key=len)
    at_work, most = 0, 0
    for line in sorted(spans.read_text().splitlines(), key=lambda line: float(line.split()[0])):
        at_work += 1 if line.endswith("+") else -1
        most = max(most, at_work)
    assert most == 2


def test_tasks_wait_for_those_that_they_depend_on_and_are_left_out_with_them(ask):
    result = ask("dag of tasks").result(timeout=20)

    assert outputs(result) == {"a": "a!", "c": "c!"}
    failed = {one["task"]: one for one in result["failed"]}
    assert (failed["b"]["status"], failed["d"]["status"]) == ("failed", "skipped")
    assert failed["d"]["error"]["message"] == "it needs b, which has no result"


def test_a_goal_of_which_every_task_failed_has_failed_and_says_why(ask):
    with pytest.raises(GoalFailedError, match=r"none of the 2 tasks has a result; look_1 failed: .*nothing") as raised:
        ask("doomed from the start").result(timeout=20)

    assert [one["task"] for one in raised.value.output["failed"]] == ["look_1", "look_2"]


def test_a_conclusion_that_fails_leaves_the_results_side_by_side(ask, provider):
    result = ask("mute model").result(timeout=20)

    assert outputs(result) == {"look_1": "one!"}
    assert "is no JSON object" in result["llm_error"]
    assert "synthesis" not in result
    assert len([text for text in asked(provider, "mute model") if "You put the results" in text]) == 3  # two retries


def test_the_same_goal_is_given_the_same_plan_without_asking_until_it_is_cleared(ask, shop, provider):
    for _ in range(2):
        assert outputs(ask("cached plan", "keeper").result(timeout=20)) == {"look_1": "one!"}
    assert len([text for text in asked(provider, "cached plan") if "This is round" not in text]) == 1

    from loomq.services.answers import clear_answers, list_answers

    (kept,) = list_answers(shop.loom, "keeper")
    assert kept.is_plan
    assert clear_answers(shop.loom, "keeper") == 1
    handle = ask("cached plan", "keeper")
    handle.result(timeout=20)
    assert handle.stages()[0].notes == {}
    assert len([text for text in asked(provider, "cached plan") if "This is round" not in text]) == 2


def test_a_plan_for_a_shape_serves_other_values_and_is_told_none(ask, provider):
    for word in ("crimson", "blue"):
        assert outputs(ask("shaped plan", "shaper", context={"word": word}).result(timeout=20)) == {
            "look_1": f"{word}!"
        }

    (first,) = [text for text in asked(provider, "shaped plan") if "This is round" not in text]
    assert "context_shape" in first
    assert "crimson" not in first


@pytest.mark.parametrize("store", ["postgres", "redis"])
def test_a_long_conversation_is_compressed_and_goes_on_from_the_checkpoint(ask, shop, provider, store):
    handle = ask(f"long {store}", f"long_{store}")

    result = handle.result(timeout=30)

    assert len(result["succeeded"]) == 7
    later = [text for text in asked(provider, f"long {store}") if "This is round 3 of 3" in text]
    (told,) = later
    assert "minutes of long" in told
    assert told.count("quick brown fox") < 6 * 40  # most of it is not told word by word any more
    assert "t0" in told
    made = [text for text in asked(provider, f"long {store}") if "You keep the minutes" in text]
    assert sum(stage.notes.get("checkpoints", 0) for stage in handle.stages()) == len(made) >= 2
    kept = checkpoints.listed(shop.loom.database, handle.goal_id)
    if store == "postgres":
        assert [one["checkpoint_number"] for one in kept] == list(range(1, len(made) + 1))
        assert kept[-1]["completed_tasks"][0] == {
            "task": "t0",
            "worker_type": "look",
            "status": "completed",
            "round": 1,
        }
        assert kept[-1]["decisions_made"] == ["go on"]
    else:
        assert kept == []
    account = explain.stage(shop.loom, handle.goal_id, "synthesis")
    assert "minutes of long" in account.prompt.messages[0].content


def test_pipelines_and_orchestrators_do_tasks_too_and_their_cost_flows_up(ask, shop):
    handle = ask("boss of all", "chief")

    result = handle.result(timeout=30)

    found = {one["task"]: one["output"] for one in result["succeeded"]}
    assert found["helper_1"]["synthesis"] == "all of plain"
    assert found["twice_2"] == {"only": {"found": "two!"}}
    view = inspect.detailed(shop.loom, handle.goal_id)
    (first, *_) = view.rounds
    helper = first.tasks[0]
    assert [(child.pipeline, child.status) for child in helper.children] == [("helper", "completed")]
    inner = inspect.detailed(shop.loom, helper.children[0].goal_id)
    assert inner.spent.calls == 3
    assert view.spent.calls == 2 + 3
    assert view.links.parent is None
    assert inner.links.parent[0] == helper.round_id


def test_a_budget_holds_over_planning_and_tasks_together(ask):
    with pytest.raises(GoalFailedError, match="budget") as raised:
        ask("spend it all", "spender", budget={"max_tokens": 5000}).result(timeout=20)

    error = raised.value.error
    assert error["stage"] == "plan_2"
    assert [one["task"] for one in raised.value.output["succeeded"]] == ["talk_1", "look_2"]


def test_results_arrive_while_others_still_run_and_leaving_early_cancels_the_rest(ask, shop):
    go = shop.project.folder / "go.txt"
    go.unlink(missing_ok=True)
    handle = ask("slow search")
    (first,) = islice(handle.results(timeout=20), 1)

    assert (first.worker_type, first.status, first.output) == ("look", "completed", {"found": "one!"})
    assert first.metadata["round"] == 1
    with pytest.raises(GoalCancelledError, match="whoever read its results has left"):
        handle.result(timeout=10)
    go.touch()


def test_results_are_read_without_blocking_and_told_to_a_callback(ask, shop):
    go = shop.project.folder / "go.txt"
    go.unlink(missing_ok=True)
    handle = ask("slow again")

    async def read():
        found = []
        async with aclosing(handle.aresults(timeout=20)) as results:
            async for result in results:
                found.append(result.output["found"])
                go.touch()
        return found

    assert asyncio.run(read()) == ["one!", "wait!"]
    heard = []
    handle.result(timeout=20, on_result=heard.append)
    assert [one.metadata["task"] for one in heard] == ["look_2", "look_1"]


def test_a_pipeline_s_stages_are_results_too(shop):
    handle = submit_goal("go", pipeline="twice", context={"q": "one"}, loom=shop.loom)
    assert [(one.metadata["task"], one.output) for one in handle.results(timeout=20)] == [("only", {"found": "one!"})]


def test_goals_of_a_limited_orchestrator_wait_for_their_turn_and_cancelling_lets_the_next_go(ask, shop):
    go = shop.project.folder / "go.txt"
    go.unlink(missing_ok=True)
    first, second = ask("slow one", "single"), ask("plain second", "single")
    wait_until(lambda: any(task.stage.state == "claimed" for round_ in inspect.detailed(shop.loom, first.goal_id).rounds
                           for task in round_.tasks), "the first one's task")  # fmt: skip
    assert second.status() is TaskStatus.PENDING

    assert first.cancel()
    assert outputs(second.result(timeout=20)) == {"look_1": "one!", "look_2": "two!"}
    (round_,) = inspect.detailed(shop.loom, first.goal_id).rounds
    wait_until(lambda: inspect.status(shop.loom, round_.goal_id) is TaskStatus.CANCELLED, "the end of the round")


def test_the_whole_goal_has_a_deadline_and_keeps_what_is_done(ask, shop):
    (shop.project.folder / "go.txt").unlink(missing_ok=True)
    with pytest.raises(GoalFailedError, match="deadline") as raised:
        ask("slow to death", "hasty").result(timeout=20)
    assert outputs(raised.value.output) == {"look_2": "one!"}
    (shop.project.folder / "go.txt").touch()


def test_a_rerun_draws_the_conclusion_again_from_what_is_there(ask, provider):
    handle = ask("plain rerun")
    handle.result(timeout=20)
    before = len(provider.journal)

    again = handle.rerun(start="synthesis").result(timeout=20)

    assert outputs(again) == {"look_1": "one!", "look_2": "two!"}
    assert len(provider.journal) == before + 1


def test_fifty_goals_at_once_are_kept_apart(ask):
    handles = [ask(f"plain {number}") for number in range(25)]
    handles += [ask(f"rounds {number}", context={"word": f"w{number}"}) for number in range(25)]

    for handle in handles[:25]:
        assert outputs(handle.result(timeout=100)) == {"look_1": "one!", "look_2": "two!"}
    for number, handle in enumerate(handles[25:]):
        assert outputs(handle.result(timeout=100)) == {"first": "one!", "third": "one!!", "fourth": f"w{number}!"}


@pytest.fixture
def cli(shop, monkeypatch, capsys):
    """The program ``loomq`` in the module's project."""
    found = Program(shop.project, monkeypatch, capsys)
    yield found
    found.close()


def test_show_draws_the_plan_and_explain_tells_prompts_and_answers(ask, cli):
    handle = ask("unknown plan shown")
    handle.result(timeout=20)
    goal_id = str(handle.goal_id)

    out, _ = cli("show", goal_id)
    assert "orchestrator research\n" in out
    assert "plan_1  its first plan was refused: task 0: worker_type: no worker is called" in out
    assert "\nplan\n└─ round 1: 1 task: 1 completed\n   └─ look_1  look  completed" in out
    assert "  synthesis: all of unknown" in out
    found = json.loads(cli("show", goal_id, "--json")[0])
    (task,) = found["rounds"][0]["tasks"]
    assert (task["task"], task["worker_type"], task["status"], task["depends_on"]) == (
        "look_1",
        "look",
        "completed",
        [],
    )
    assert found["orchestrator"] == "research"
    assert json.loads(cli("show", task["goal_id"], "--json")[0])["parent"]["goal_id"] == goal_id

    out, _ = cli("explain", goal_id, "plan_1")
    assert "[system]" in out
    assert '"instruction": "unknown plan shown"' in out
    assert '"worker_type": "lok"' in out  # the first answer
    assert "Sure:" in out  # and the second
    out, _ = cli("explain", goal_id, "synthesis")
    assert '"task": "look_1"' in out
    assert '"synthesis": "all of unknown"' in out
    out, _ = cli("explain", task["goal_id"], "look_1")
    assert '"q": "one"' in out
    assert goal_id in cli("list")[0]
    assert task["goal_id"] not in cli("list", "-n", "500")[0]


def test_an_orchestrator_is_planned_drawn_and_run_by_name(cli, shop):
    out, _ = cli("plan", "chief")
    assert "orchestrator chief" in out
    assert "helper             orchestrator" in out
    assert [one["name"] for one in json.loads(cli("plan", "chief", "--json")[0])["available"]] == ["helper", "twice"]
    assert "synthesis" in cli("graph", "research")[0]

    out, err = cli("run", "research", code=2)
    assert "say what you want" in err
    out, err = cli("run", "research", "plain", "--tier", "local", code=2)
    assert "its file says its tier" in err
    out, err = cli("run", "research", "plain run", "--timeout", "30")
    assert "all of plain" in out
    assert "tasks_1/look_2 completed" in err


def test_the_cache_is_listed_and_cleared_by_name(ask, cli):
    ask("cached by name", "keeper").result(timeout=20)
    found = json.loads(cli("cache", "list", "--name", "keeper", "--json")[0])["answers"]
    assert {one["kind"] for one in found} == {"plan"}
    assert "keeper" in cli("cache", "list")[0]
    assert json.loads(cli("cache", "clear", "--name", "keeper", "--json")[0])["cleared"] == len(found)
    assert "no answer is kept of keeper" in cli("cache", "list", "--name", "keeper")[1]


def test_a_call_of_an_orchestrator_says_what_to_do_instead(shop):
    with pytest.raises(UnknownNameError, match="it takes goals and no calls"):
        shop.loom.app.tasks["loomq.worker.research"].delay({"instruction": "x"})


def test_a_paused_goal_starts_nothing_more_of_its_rounds(ask, shop):
    go = shop.project.folder / "go.txt"
    go.unlink(missing_ok=True)
    handle = ask("slow and paused")
    wait_until(lambda: len(inspect.detailed(shop.loom, handle.goal_id).rounds) == 1, "the round")
    assert handle.pause()
    go.touch()
    round_id = inspect.detailed(shop.loom, handle.goal_id).rounds[0].goal_id
    wait_until(lambda: "claimed" not in rounds.counts(shop.loom.database, round_id), "what runs to end")
    assert handle.status() is TaskStatus.PROCESSING
    assert handle.resume()
    assert len(handle.result(timeout=20)["succeeded"]) == 2


def test_a_plan_that_was_wrong_twice_is_asked_for_anew_when_it_is_replayed(ask, shop):
    handle = ask("mended later")
    with pytest.raises(GoalFailedError, match='called "lok"'):
        handle.result(timeout=20)
    MENDED.append(True)
    replay_dead_letter(f"{handle.goal_id}/plan_1", loom=shop.loom)
    assert outputs(handle.result(timeout=20)) == {"look_1": "one!"}


def test_a_corrected_plan_is_kept_for_whoever_asks_the_same(ask, provider):
    for _ in range(3):
        assert outputs(ask("erring plan", "keeper").result(timeout=20)) == {"look_1": "one!"}
    assert len([text for text in asked(provider, "erring plan") if "This is round" not in text]) == 2  # of the first


def test_a_session_is_told_the_results_though_no_model_concludes(ask, shop):
    session = create_session("talk", loom=shop.loom)
    ask("plain talk", "narrow", session=session).result(timeout=20)
    said = get_session(session.session_id, loom=shop.loom).messages[-1].content
    assert '"found": "one!"' in said


def test_nothing_for_so_long_ends_the_wait_for_results_and_not_the_goal(ask, shop):
    go = shop.project.folder / "go.txt"
    go.unlink(missing_ok=True)
    handle = ask("slow waiter")
    found = handle.results(timeout=3)
    assert next(found).output == {"found": "one!"}
    with pytest.raises(WaitTimeoutError, match="no task of goal"):
        next(found)
    go.touch()
    assert len(handle.result(timeout=20)["succeeded"]) == 2


def test_results_of_stages_that_fan_out_are_whole_and_those_of_contained_pipelines_say_so(ask, shop):
    shop.loom.configs.reload()
    handle = submit_goal("go", pipeline="fan", context={"qs": ["a", "b"]}, loom=shop.loom)
    (each,) = handle.results(timeout=20)
    assert [one["found"] for one in each.output["items"]] == ["a!", "b!"]

    found = {one.metadata["task"]: one for one in ask("boss of results", "chief").results(timeout=30)}
    assert {name: one.worker_type for name, one in found.items()} == {"helper_1": "helper", "twice_2": "twice"}
    assert found["helper_1"].token_usage.prompt_tokens > 0


def test_a_round_is_not_rerun_by_itself(ask, shop):
    handle = ask("plain again")
    handle.result(timeout=20)
    (round_,) = inspect.detailed(shop.loom, handle.goal_id).rounds
    with pytest.raises(GoalStateError, match="is a round of tasks") as raised:
        GoalHandle(shop.loom, round_.goal_id).rerun(start="look_1")
    assert f"loomq rerun {handle.goal_id} --from tasks_1" in raised.value.hint
