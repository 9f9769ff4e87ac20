"""Changes of silos: written with the result that they came with, made once and in order, whoever dies meanwhile."""

from __future__ import annotations

import json
import socket
import threading
from datetime import timedelta

import pytest
from rows import alter, at_once, claim, complete, new_stage, submit

from loomq.knowledge.spec import FolderSilo
from loomq.runs.silos import Silos
from loomq.store import prune, silos

NOTES = FolderSilo(name="notes", type="folder", path="notes", permissions="read_write")


def _updates(*files, folder="notes", reason=None, action="add", silo=NOTES):
    return json.dumps([
        {
            "folder": folder, "reason": reason, "silo": silo.model_dump(mode="json"),
            "asked": {"silo": "notes", "action": action, "filename": name, "content": text},
        }
        for name, text in files
    ])  # fmt: skip


def _end(database, updates, name="a"):
    held = claim(database, submit(database, new_stage(name)), name)
    return held, complete(database, held, updates=updates)


def _states(database, goal):
    return [(one.asked["filename"], one.state, one.reason) for one in silos.of_goal(database, goal)]


def test_changes_are_made_in_their_order_after_the_result_is_recorded(database, tmp_path):
    held, _ = _end(database, _updates(("a.md", "1"), ("b.md", "2")))
    assert not (tmp_path / "notes").exists()
    assert silos.has_pending(database, "notes")
    assert Silos(database, tmp_path).settle("notes") == 2
    assert {file.name: file.read_text() for file in (tmp_path / "notes").iterdir()} == {"a.md": "1", "b.md": "2"}
    assert _states(database, held.key.goal_id) == [("a.md", "applied", None), ("b.md", "applied", None)]
    assert Silos(database, tmp_path).settle("notes") == 0


def test_a_result_that_is_refused_changes_nothing(database, tmp_path):
    held = claim(database, submit(database, new_stage("a")), "a")
    alter(database, held.key.goal_id, "a", "token = gen_random_uuid()")
    assert complete(database, held, updates=_updates(("a.md", "1"))).verdict == "fenced"
    assert Silos(database, tmp_path).settle("notes") == 0
    assert not (tmp_path / "notes").exists()


def test_a_completion_that_is_repeated_brings_its_changes_once(database):
    held, _ = _end(database, _updates(("a.md", "1")))
    assert complete(database, held, updates=_updates(("a.md", "1"))).verdict == "repeated"
    assert len(silos.of_goal(database, held.key.goal_id)) == 1


def test_what_was_refused_before_is_told_and_not_made(database, tmp_path):
    held, _ = _end(database, _updates(("../x.md", "1"), folder="", reason="it climbs out"))
    assert Silos(database, tmp_path).settle("notes") == 0
    assert _states(database, held.key.goal_id) == [("../x.md", "refused", "it climbs out")]


def test_a_refusal_by_the_disk_s_state_is_told(database, tmp_path):
    _end(database, _updates(("a.md", "1")))
    held, _ = _end(database, _updates(("a.md", "2")))
    Silos(database, tmp_path).settle("notes")
    ((_, state, reason),) = _states(database, held.key.goal_id)
    assert (state, (tmp_path / "notes" / "a.md").read_text()) == ("refused", "1")
    assert "modify" in reason


def test_a_crash_in_the_middle_leaves_the_change_to_the_next(database, tmp_path):
    held, _ = _end(database, _updates(("a.md", "1")))

    def dies(silo, asked):
        Silos(database, tmp_path)._apply(silo, asked)  # made on the disk, and then
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        silos.apply_next(database, "notes", dies)
    assert _states(database, held.key.goal_id) == [("a.md", "pending", None)]
    assert Silos(database, tmp_path).settle("notes") == 1
    assert _states(database, held.key.goal_id) == [("a.md", "applied", None)]


def test_what_the_disk_cannot_take_now_waits(database, tmp_path, monkeypatch, caplog):
    held, _ = _end(database, _updates(("a.md", "1")))
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("loomq.runs.silos.apply_update", lambda *_: (_ for _ in ()).throw(full))
        assert Silos(database, tmp_path).settle("notes") == 0
    assert "No space left" in caplog.text
    assert _states(database, held.key.goal_id) == [("a.md", "pending", None)]
    assert Silos(database, tmp_path).settle("notes") == 1


def test_a_hundred_writers_at_once_leave_what_some_order_of_theirs_would(database, tmp_path):
    goals = []
    lock = threading.Lock()

    def write(number):
        held, _ = _end(database, _updates(("one.md", f"{number}" * 1000), action="modify"))
        Silos(database, tmp_path).settle("notes")
        with lock:
            goals.append(held.key.goal_id)

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.md").write_text("first")
    for start in range(0, 100, 10):
        at_once(*(lambda number=number: write(number) for number in range(start, start + 10)))
    rows = database.call("SELECT asked ->> 'content' FROM silo_updates WHERE state = 'applied' ORDER BY ended_at", {})
    assert len(rows) == 100
    assert (tmp_path / "notes" / "one.md").read_text() == rows[-1][0]


def test_one_writer_at_a_time_has_a_folder(database):
    for _ in range(6):
        _end(database, _updates(("a.md", "1")))
    inside, most = [], []

    def apply(silo, asked):
        inside.append(1)
        most.append(len(inside))
        database.call("SELECT pg_sleep(0.02)", {})
        inside.pop()

    at_once(*(lambda: silos.apply_next(database, "notes", apply) for _ in range(6)))
    assert (len(most), max(most)) == (6, 1)
    assert not silos.has_pending(database, "notes")


def test_the_sweeper_makes_what_was_left_behind_in_folders_that_are_here(database, tmp_path):
    _end(database, _updates(("a.md", "1")))
    elsewhere = NOTES.model_copy(update={"path": "elsewhere"})
    _end(database, _updates(("a.md", "1"), folder="elsewhere", silo=elsewhere))
    (tmp_path / "notes").mkdir()
    assert Silos(database, tmp_path).settle_waiting() == 0  # whoever recorded it is given a moment
    database.call("UPDATE silo_updates SET at = now() - interval '1 minute'", {})
    assert Silos(database, tmp_path).settle_waiting() == 1
    assert (tmp_path / "notes" / "a.md").exists()
    assert not (tmp_path / "elsewhere").exists()
    database.call("UPDATE silo_updates SET host = %(host)s WHERE state = 'pending'", {"host": socket.gethostname()})
    assert Silos(database, tmp_path).settle_waiting() == 1  # a folder that this machine was to make
    assert (tmp_path / "elsewhere" / "a.md").exists()


def test_prune_leaves_changes_that_are_still_to_be_made(database, tmp_path):
    _end(database, _updates(("a.md", "1")))
    done, _ = _end(database, _updates(("b.md", "1"), folder="other"))
    database.call("UPDATE silo_updates SET state = 'applied' WHERE goal_id = %(id)s", {"id": done.key.goal_id})
    until = prune.cutoffs(database, goals=timedelta(0), letters=timedelta(0), most_letters=9)
    assert sum(batch.goals for batch in prune.goals(database, until, actor="me")) == 2
    assert [row[0] for row in database.call("SELECT folder FROM silo_updates", {})] == ["notes"]
    assert Silos(database, tmp_path).settle("notes") == 1
