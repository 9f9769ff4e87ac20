"""What failed for good, and its way back: through real workers, from the command line and from Python."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import chord

import loomq as public
from loomq.errors import DeadLetterError, GoalFailedError, NotFoundError
from loomq.ids import uuid7
from loomq.messages import TaskStatus
from loomq.services import inspect
from loomq.services.submit import GoalHandle, submit_goal, submit_task
from loomq.store import goals, letters, malformed
from loomq.store.stages import StageKey
from loomq.testing import wait_until

NODE = ("-c", "2")
LEDGER = 'with open(payload["ledger"], "a") as out: out.write(payload["name"] + "\\n")\n'


def stock(project):
    project.worker(
        "mend",
        'if not Path(payload["mended"]).exists(): raise ValueError("sk-ant-0123456789abcdef is not mended")\n'
        f'{LEDGER}return {{"output": {{"n": payload.get("n", 0)}}}}',
    )
    project.worker("note", f'time.sleep(payload.get("sleep") or 0)\n{LEDGER}return {{"output": {{"n": 1}}}}')
    project.worker(
        "poison",
        'if not Path(payload["mended"]).exists(): os.kill(os.getpid(), signal.SIGKILL)\nreturn {"output": {}}',
    )
    project.worker(
        "strict",
        'if payload["n"] < 0: raise ValueError(f"{payload[\'n\']} is less than nothing")\nreturn {"output": payload}',
        input_schema="{type: object, properties: {n: {type: integer}}, required: [n]}",
    )
    project.worker("total", 'return {"output": {"n": sum(item["n"] for item in payload["items"])}}')
    common = "mended: goal.context.mended, ledger: goal.context.ledger"
    project.pipeline(
        "shape",
        f"""
  - {{name: first, worker_type: note, input_mapping: {{name: "'first'", {common}}}}}
  - {{name: broken, worker_type: mend, input_mapping: {{name: "'broken'", n: first.output.n, {common}}}}}
  - {{name: slow, worker_type: note, input_mapping: {{name: "'slow'", sleep: first.output.n, {common}}}}}
  - {{name: beside, worker_type: note, input_mapping: {{name: "'beside'", n: slow.output.n, {common}}}}}
  - {{name: last, worker_type: note, input_mapping: {{name: "'last'", a: beside.output, b: broken.output, {common}}}}}
""",
    )
    project.pipeline("checked", "  - {name: only, worker_type: strict, input_mapping: {n: goal.context.n}}")


@pytest.fixture
def project(shop):
    """The module's project, for the program too."""
    return shop.project


@pytest.fixture
def loom(shop):
    return shop.loom


def failed(handle: GoalHandle) -> str:
    """Wait for the goal to fail, and give its id."""
    with pytest.raises(GoalFailedError):
        handle.result(timeout=30)
    return str(handle.goal_id)


def test_a_replayed_dead_letter_rejoins_its_goal_and_nothing_else_runs_twice(loom, loomq, tmp_path):
    ledger, mended = tmp_path / "ledger", tmp_path / "mended"
    context = {"ledger": str(ledger), "mended": str(mended)}
    handle = submit_goal("go", pipeline="shape", context=context, loom=loom)
    goal_id = failed(handle)
    assert {stage.name: stage.state for stage in handle.stages()}["beside"] == "cancelled"

    shown, _ = loomq("show", goal_id)
    assert shown.endswith(f"once the cause is mended:  loomq dead-letter replay {goal_id}\n")
    (letter,) = json.loads(loomq("dead-letter", "list", "--goal", goal_id[:23], "--json")[0])["letters"]
    assert (letter["id"], letter["pipeline"], letter["attempts"]) == (f"{goal_id}/broken", "shape", 1)
    out, _ = loomq("dead-letter", "show", goal_id[:23])
    for line in (
        f"letter      {goal_id}/broken",
        "PipelineWorkerError: worker mend failed in stage broken: ValueError: sk-ant-*** is not mended",
        "another attempt would not help",
        f'  "ledger": "{ledger}"',
        "  task: loomq.worker.mend",
        "  queue: mend.local",
        f"  loomq dead-letter replay {goal_id}/broken",
    ):
        assert line in out

    mended.touch()
    out, err = loomq("dead-letter", "replay", f"{goal_id[:23]}/broken", "--actor", "ann")
    assert out == f"replayed {goal_id}/broken\n"
    assert "other stages of its goal go on\n1 dead letter of 1 goal replayed" in err
    assert handle.result(timeout=30)["last"] == {"n": 1}
    assert sorted(ledger.read_text().split()) == ["beside", "broken", "first", "last", "slow"]
    out, _ = loomq("dead-letter", "replay", f"{goal_id}/broken")
    assert out == f"nothing to replay: {goal_id}/broken is done\n"
    assert "replayed by ann" in loomq("show", goal_id)[0]
    assert f"goal {goal_id} has no dead letter; it is completed" in loomq("dead-letter", "show", goal_id, code=4)[1]


def test_another_input_is_refused_by_the_contract_and_then_taken(loom, loomq):
    handle = submit_goal("go", pipeline="checked", context={"n": -1}, loom=loom)
    letter = f"{failed(handle)}/only"
    _, err = loomq("dead-letter", "edit", letter, "--set", "n=many", code=2)
    assert 'the new input of stage only breaks the contract of worker strict: n: "many" is not of type "integer"' in err
    assert "nothing was changed" in err
    assert "is not JSON" in loomq("dead-letter", "edit", letter, "--payload", "{n: 1}", code=2)[1]
    assert "say what to change" in loomq("dead-letter", "edit", letter, code=2)[1]
    assert json.loads(loomq("dead-letter", "show", letter, "--json")[0])["payload"] == {"n": -1}

    out, _ = loomq("dead-letter", "edit", letter, "--set", "n=7", "--no-replay", "--actor", "ann", "--json")
    assert (json.loads(out)["outcome"], handle.status()) == ("edited", TaskStatus.FAILED)
    out, _ = loomq("dead-letter", "show", letter)
    assert 'input, edited\n  {\n    "n": 7\n  }' in out
    out, _ = loomq("dead-letter", "edit", letter, "--payload", '{"n": 7, "more": 1}', "--set", "n=8", "--actor", "bob")
    assert out == f"replayed {letter}\n"
    assert handle.result(timeout=30)["only"] == {"n": 8, "more": 1}
    trail = letters.trail(loom.database, goal_id=handle.goal_id)
    assert [deed.detail["payload_before"] for deed in trail] == [{"n": -1}, {"n": 7}]
    (stage,) = handle.stages()
    assert [(entry.get("by"), entry.get("edited")) for entry in stage.history] == [(None, None), ("bob", True)]


def test_all_that_is_meant_is_replayed_at_once_and_asked_about_before(loom, loomq, tmp_path):
    ledger, mended = tmp_path / "ledger", tmp_path / "mended"
    given = [{"ledger": str(ledger), "mended": str(mended), "name": f"n{n}", "n": n} for n in range(20)]
    handles = [submit_task("mend", one, loom=loom) for one in given]
    other = failed(submit_task("mend", {**given[0], "mended": str(tmp_path / "never")}, loom=loom))
    for handle in handles:
        failed(handle)
    mended.touch()
    public.drop_dead_letter(other, loom=loom)

    _, err = loomq("dead-letter", "replay", "--all", "--worker", "mend", code=2)
    assert "20 dead letters of 20 goals are meant; say --yes to replay them" in err
    assert "go with --all" in loomq("dead-letter", "replay", "x", "--worker", "mend", code=2)[1]
    out, _ = loomq("dead-letter", "replay", "--all", "--worker", "mend", "--limit", "5", "--yes", "--json")
    done = json.loads(out)
    assert (done["goals"], done["letters"], done["left"], done["refused"]) == (5, 5, 15, [])
    _, err = loomq("dead-letter", "replay", "--all", "--text", "NOT MENDED", "--since", "1h", "--yes")
    assert err.endswith("15 dead letters of 15 goals replayed\n")
    assert [handle.result(timeout=30)["n"] for handle in handles] == list(range(20))
    assert len(ledger.read_text().split()) == 20
    assert loomq("dead-letter", "replay", "--all", "--worker", "mend")[1] == "0 dead letters of 0 goals replayed\n"


def test_what_was_dropped_is_not_replayed_and_its_trail_says_who_dropped_it(loom, loomq):
    letter = f"{failed(submit_task('strict', {'n': -5}, loom=loom))}/strict"
    assert loomq("dead-letter", "drop", letter, "--actor", "ann")[0] == f"dropped {letter}\n"
    loomq("dead-letter", "drop", letter, "--actor", "bob")
    out, _ = loomq("dead-letter", "show", letter)
    assert "dropped: it will not be replayed" in out
    assert [line.split()[-3:] for line in out.splitlines() if "  drop  " in line] == [["ann", "drop", "strict"]]
    _, err = loomq("dead-letter", "replay", letter, code=2)
    assert "it was dropped, so the goal cannot end\n  submit the goal anew" in err
    assert letter not in loomq("dead-letter", "list")[0]


def test_if_one_of_several_letters_is_wrong_nothing_is_replayed_or_dropped(loom, loomq):
    good = f"{failed(submit_task('strict', {'n': -7}, loom=loom))}/strict"
    gone = f"{failed(submit_task('strict', {'n': -8}, loom=loom))}/strict"
    public.drop_dead_letter(gone, loom=loom)
    assert "there is no goal ffff" in loomq("dead-letter", "replay", good, "ffff", code=4)[1]
    assert "it was dropped" in loomq("dead-letter", "replay", good, gone, code=2)[1]
    assert "there is no stage" in loomq("dead-letter", "drop", good, f"{good}s", code=4)[1]
    assert json.loads(loomq("dead-letter", "show", good, "--json")[0])["audit"] == []
    other = f"{failed(submit_task('strict', {'n': -9}, loom=loom))}/strict"
    assert loomq("dead-letter", "replay", good, other)[1] == "2 dead letters of 2 goals replayed\n"


def test_a_list_without_a_match_says_what_there_is(loom, loomq):
    failed(submit_task("strict", {"n": -11}, loom=loom))
    _, err = loomq("dead-letter", "list", "--type", "Timeout", "--worker", "strickt")
    assert 'no dead letter has the type "Timeout"; there are: ' in err
    assert "PipelineWorkerError" in err
    assert 'no dead letter has the worker "strickt"; there are: ' in err


def test_no_to_the_question_replays_nothing(loom, loomq, monkeypatch):
    failed(submit_task("strict", {"n": -12}, loom=loom))
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    _, err = loomq("dead-letter", "replay", "--all", "--text", "-12 is less")
    assert err.endswith("nothing was replayed\n")
    assert len(public.list_dead_letters(text="-12 is less", loom=loom)) == 1


def test_work_that_killed_its_process_completes_when_it_is_replayed_after_the_mend(loom, tmp_path):
    mended = tmp_path / "mended"
    handle = submit_task("poison", {"mended": str(mended)}, loom=loom)
    goal_id = failed(handle)
    (letter,) = public.list_dead_letters(state="dead", loom=loom)
    assert (str(letter.goal_id), letter.deliveries) == (goal_id, 5)
    assert letter.reason == "its process ended 5 times"
    mended.touch()
    assert public.replay_dead_letter(goal_id, loom=loom).replayed == (letter.id,)
    assert handle.result(timeout=30) == {}
    (stage,) = handle.stages()
    assert (stage.deliveries, stage.attempt, len(stage.history)) == (1, 1, 6)


def test_what_was_replayed_and_not_sent_is_found_by_the_sweeper(loom, tmp_path):
    mended = tmp_path / "mended"
    handle = submit_task("mend", {"ledger": str(mended), "mended": str(mended), "name": "x"}, loom=loom)
    failed(handle)
    mended.touch()
    key = StageKey(handle.goal_id, "mend")
    letters.replay(loom.database, key, actor="a process that died", request=uuid7())  # and nothing more
    assert handle.result(timeout=30) == {"n": 0}


def test_a_chord_goes_on_when_the_call_that_failed_it_is_replayed(loom, tmp_path):
    mended, tasks = tmp_path / "mended", loom.app.tasks
    given = {"ledger": str(tmp_path / "ledger"), "mended": str(mended), "name": "x"}
    header = [tasks["loomq.worker.mend"].s({**given, "n": 5}), tasks["loomq.worker.note"].s(given)]
    body = tasks["loomq.worker.total"].s().set(task_id=uuid4().hex)
    with pytest.raises(Exception, match="not mended"):
        chord(header, body).apply_async().get(timeout=30)
    mended.touch()
    (letter,) = public.list_dead_letters(worker="mend", loom=loom)
    public.replay_dead_letter(letter.id, loom=loom)
    found = wait_until(lambda: goals.find_by_key(loom.database, f"task:{body.options['task_id']}"), "the body")
    assert GoalHandle(loom, found).result(timeout=30) == {"n": 6}
    assert loom.app.AsyncResult(body.options["task_id"]).get(timeout=30) == {"n": 6}


def test_a_malformed_message_is_shown_and_dropped_and_not_replayed(loom, loomq):
    body = b'{"password": "hunter22", \xff'
    found = malformed.put(loom.database, "mend.local", "it is not JSON", body, {"size": len(body)}, None)
    shown = json.loads(loomq("dead-letter", "list", "--json")[0])
    listed = shown["malformed"]
    assert str(found) in [message["id"] for message in listed]
    assert shown["malformed_total"] == len(listed)
    assert "1 malformed message not shown" in loomq("dead-letter", "list", "--worker", "mend")[1]
    assert "ids or more begin with 01" in loomq("dead-letter", "show", "01", code=2)[1]
    out, _ = loomq("dead-letter", "show", str(found)[:30])
    assert "reason      it is not JSON" in out
    assert "\\xff" in out
    assert "hunter22" not in out + json.dumps(listed)
    for words in (["replay"], ["edit", "--set", "a=1"]):
        _, err = loomq("dead-letter", words[0], str(found), *words[1:], code=2)
        assert "no task could be made of it" in err
    loomq("dead-letter", "drop", str(found))
    assert str(found) not in loomq("dead-letter", "list")[0]
    assert "  drop" in loomq("dead-letter", "show", str(found))[0]


def test_python_sees_what_the_command_line_sees(loom):
    goal_id = failed(submit_task("strict", {"n": -2}, loom=loom))
    since = datetime.now(UTC) - timedelta(seconds=30)
    (letter,) = public.list_dead_letters(goal_id=inspect.find(loom, goal_id), since=since, loom=loom)
    assert isinstance(letter, public.DeadLetter)
    details = public.get_dead_letter(letter.id, loom=loom)
    assert (details.payload, details.payload_fault, details.audit) == ({"n": -2}, None, ())
    with pytest.raises(NotFoundError, match="there is no stage other"):
        public.get_dead_letter(f"{goal_id}/other", loom=loom)
    public.drop_dead_letter(letter.id, loom=loom)
    with pytest.raises(DeadLetterError, match="was dropped"):
        public.edit_dead_letter(letter.id, {"n": 1}, replay=False, loom=loom)
    assert public.replay_dead_letters(goal_id=letter.goal_id, loom=loom).letters == 0


def test_prune_says_what_it_takes_and_leaves_dead_letters(loom, loomq):
    kept = failed(submit_task("strict", {"n": -3}, loom=loom))
    gone = submit_task("strict", {"n": 3}, loom=loom)
    gone.result(timeout=30)
    planned = json.loads(loomq("prune", "--older", "0", "--dry-run", "--json")[0])
    assert planned["dry_run"]
    assert planned["goals"] >= 1
    out, err = loomq("prune", "--older", "0")
    assert out.splitlines()[0].split() == ["goals", f"{planned['goals']}"]
    assert err == "deleted\n"
    assert f"there is no goal {gone.goal_id}" in loomq("show", str(gone.goal_id), code=4)[1]
    assert kept in loomq("dead-letter", "list")[0]
    assert loomq("prune", "--older", "-1", code=2)
