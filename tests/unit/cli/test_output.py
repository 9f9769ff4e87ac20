"""What people see: durations, tables, shortened texts, and no colours where nobody looks."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from loomq.cli import goal, output, progress, terminal
from loomq.messages import TaskStatus
from loomq.services.inspect import GoalView, StageView

START = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def stage(name: str, status: TaskStatus = TaskStatus.COMPLETED, **more: object) -> StageView:
    state = {"completed": "done", "pending": "waiting", "processing": "claimed"}.get(str(status), str(status))
    values = {
        "worker": "echo",
        "tier": "local",
        "state": state,
        "attempt": 1,
        "deliveries": 1,
        "queued_at": START,
        "started_at": START,
        "ended_at": START + timedelta(seconds=1.2) if status != "processing" else None,
        "queue_time_ms": 0,
        "wall_time_ms": 1200,
        "processing_time_ms": 1,
        "model_used": None,
        "token_usage": None,
        "pid": 7,
        "node": None,
        "reason": None,
        "error": None,
        "history": [],
        "output": None,
        **more,
    }
    return StageView(name=name, status=status, **values)


def view(*stages: StageView, **result: object) -> GoalView:
    return GoalView(
        goal_id=UUID(int=7),
        name="line",
        kind="pipeline",
        instruction="",
        context={},
        priority="normal",
        status=TaskStatus.COMPLETED,
        created_at=START,
        ended_at=START + timedelta(seconds=2),
        error=None,
        stages=stages,
        result=result,
    )


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, None),
        (0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (1234, "1.2 s"),
        (59_949, "59.9 s"),
        (185_000, "3 min 05 s"),
        (7_800_000, "2 h 10 min"),
    ],
)
def test_durations_are_written_as_people_read_them(milliseconds, text):
    assert output.duration(milliseconds) == text


def test_the_table_of_stages_is_plain_where_nobody_looks(capsys):
    goal.print_stages(view(stage("a"), stage("b[bold]", TaskStatus.SKIPPED, wall_time_ms=None, pid=None)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["stage", "worker", "tier", "status", "attempt", "waited", "ran", "process"],
        ["a", "echo", "local", "completed", "1", "0", "ms", "1.2", "s", "7"],
        ["b[bold]", "echo", "local", "skipped", "1", "0", "ms", "-", "-"],
    ]


def test_a_result_is_shown_without_the_timeline_and_with_long_texts_cut(capsys):
    goal.print_result(view(text="x" * 5000, rows=list(range(30)), n=None, _timeline=[1]))
    out = capsys.readouterr().out
    assert "(5,000 characters)" in out
    assert "… and 10 more" in out
    assert "  n: null" in out
    assert "_timeline" not in out


def test_every_attempt_that_failed_is_told_with_its_place(capsys):
    history = [{"attempt": 1, "error": {"type": "PipelineWorkerError", "message": "no", "where": "work.py:3"}}]
    goal.print_faults(view(stage("a", history=history), stage("b")))
    assert capsys.readouterr().out.splitlines() == [
        "",
        "stage a (worker echo) completed",
        "  attempt 1: PipelineWorkerError: no",
        "    where: work.py:3",
    ]


def test_the_json_of_a_command_is_one_object_and_keeps_its_letters(capsys):
    output.emit({"text": "grüße …"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": "grüße …"}
    assert "grüße …" in out


def test_each_change_of_a_stage_is_one_line_on_stderr(capsys):
    lines = progress.Lines()
    lines.update([stage("a", TaskStatus.PROCESSING), stage("b", TaskStatus.PENDING)])
    lines.update([stage("a", TaskStatus.PROCESSING), stage("b", TaskStatus.PENDING)])
    lines.update([stage("a"), stage("b", TaskStatus.RETRY, attempt=2)])
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == [
        "a processing",
        "a completed 1.2 s",
        "b retry (attempt 2) 1.2 s",
    ]


def test_a_pipeline_longer_than_the_screen_shows_what_is_at_work():
    stages = [stage(f"s{number}") for number in range(40)]
    stages[30] = stage("s30", TaskStatus.PROCESSING)
    stages += [stage(f"w{number}", TaskStatus.PENDING) for number in range(20)]
    drawn = progress.picture(stages, room=10)
    assert drawn.row_count == 9
    assert "s30" in {str(cell) for cell in drawn.columns[0].cells}
    assert drawn.caption == "39 of 60 stages ended"
    assert progress.picture(stages[:5], room=10).row_count == 5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_need_a_terminal_and_no_word_against_them(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.colored("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert terminal.colored("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.colored("x", "red", Terminal()) == "x"


def test_what_could_steer_a_terminal_is_replaced():
    assert terminal.printable("a\x1b[2J\tb\r\nc\x07\x9b") == "a\ufffd[2J\tb\nc\ufffd\ufffd"
    assert terminal.shortened("x" * 10, 4) == "xxxx … (10 characters)"
