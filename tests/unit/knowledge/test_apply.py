"""One change on the disk: what it makes of the folder, what it refuses, and that it is safe to make twice."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_workspace import ESCAPES, everything_below

from loomq.knowledge.spec import FolderSilo
from loomq.knowledge.updates import Update, apply_update


def silo(**changes):
    return FolderSilo(**{"name": "s", "type": "folder", "path": "notes", "permissions": "read_write", **changes})


def add(filename, content="new"):
    return Update("s", "add", filename, content)


def modify(filename, content="new"):
    return Update("s", "modify", filename, content)


def delete(filename):
    return Update("s", "delete", filename)


def texts_below(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "old.md").write_text("old")
    (tmp_path / "secret.md").write_text("secret")
    return folder


@pytest.mark.parametrize(
    ("update", "refusal", "after"),
    [
        (add("a.md"), None, {"old.md": "old", "a.md": "new"}),
        (add("deep/er/a.md", "ß\r\n"), None, {"old.md": "old", "deep/er/a.md": "ß\r\n"}),
        (add("old.md", "old"), None, {"old.md": "old"}),
        (add("old.md", "older"), "exists; modify it", {"old.md": "old"}),
        (add("old.md", "ol"), "exists; modify it", {"old.md": "old"}),
        (modify("old.md"), None, {"old.md": "new"}),
        (modify("old.md", ""), None, {"old.md": ""}),
        (modify("a.md"), "does not exist; add it", {"old.md": "old"}),
        (modify("no/a.md"), "does not exist; add it", {"old.md": "old"}),
        (delete("old.md"), None, {}),
        (delete("a.md"), None, {"old.md": "old"}),
        (delete("no/a.md"), None, {"old.md": "old"}),
    ],
)
def test_a_change_is_made_or_refused_and_made_again_it_is_the_same(tmp_path, notes, update, refusal, after):
    for _ in range(2):
        assert apply_update(tmp_path, silo(), update) == refusal
        contents = texts_below(notes)
        assert {name: text.encode() for name, text in contents.items()} == {
            name: text.replace("\r\n", "\n").encode() for name, text in after.items()
        }


def test_a_missing_folder_is_made_by_add_only(tmp_path):
    assert apply_update(tmp_path, silo(path="new/notes"), delete("a.md")) is None
    assert apply_update(tmp_path, silo(path="new/notes"), modify("a.md")) == "does not exist; add it"
    assert not (tmp_path / "new").exists()
    assert apply_update(tmp_path, silo(path="new/notes"), add("a.md")) is None
    assert (tmp_path / "new/notes/a.md").read_text() == "new"


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_a_name_that_leaves_the_silo_is_refused(tmp_path, notes, name):
    before = everything_below(tmp_path), texts_below(tmp_path)
    for filename in (name, f"{name}.md"):
        for update in (add(filename), modify(filename), delete(filename)):
            assert apply_update(tmp_path, silo(), update)
    assert (everything_below(tmp_path), texts_below(tmp_path)) == before


def test_what_may_not_be_asked_for_is_not_done_either(tmp_path, notes):
    for update in (add(".siloignore"), add("run.sh"), add("a.md", "\x00"), Update("s", "move", "old.md", "x")):
        assert apply_update(tmp_path, silo(), update)
    assert apply_update(tmp_path, silo(permissions="read"), delete("old.md")) == "silo s may only be read"
    assert texts_below(notes) == {"old.md": "old"}


@pytest.mark.parametrize("target", ["../secret.md", "../gone.md", "old.md", "..", "sub"])
def test_a_link_or_a_folder_is_refused_and_never_followed(tmp_path, notes, target):
    (notes / "link.md").symlink_to(target)
    (notes / "sub/inner.md").mkdir()
    before = everything_below(tmp_path), (tmp_path / "secret.md").read_text()
    for name in ("link.md", "link.md/secret.md", "link.md/new.md", "sub/inner.md", "old.md/a.md"):
        for update in (add(name), add(name, "old"), modify(name), delete(name)):
            assert apply_update(tmp_path, silo(), update), (name, update)
    assert (notes / "link.md").is_symlink()
    assert (everything_below(tmp_path), (tmp_path / "secret.md").read_text()) == before


def test_a_pipe_is_refused_and_waited_for_by_nobody(tmp_path, notes):
    os.mkfifo(notes / "pipe.md")
    for update in (add("pipe.md"), modify("pipe.md"), delete("pipe.md")):
        assert "not a regular file" in apply_update(tmp_path, silo(), update)
    assert apply_update(tmp_path, silo(), add("a.md")) is None


def test_one_file_more_than_the_silo_may_hold_is_refused(tmp_path, notes):
    (notes / ".hidden").write_text("counts too")
    (notes / "link.md").symlink_to("old.md")
    assert apply_update(tmp_path, silo(max_files=3), add("1.md")) is None
    assert apply_update(tmp_path, silo(max_files=3), add("2.md")) == "silo s would hold 4 files; it may hold 3"
    assert apply_update(tmp_path, silo(max_files=3), modify("1.md", "more")) is None
    assert sorted(texts_below(notes)) == [".hidden", "1.md", "link.md", "old.md"]


def test_one_byte_more_than_the_silo_may_hold_is_refused(tmp_path, notes):
    (notes / "data.bin").write_bytes(b"\xff" * 10)
    limited = silo(max_bytes=20)
    assert apply_update(tmp_path, limited, add("a.md", "1234567")) is None
    assert apply_update(tmp_path, limited, add("b.md", "1")) == "silo s would hold 21 bytes; it may hold 20"
    assert apply_update(tmp_path, limited, modify("old.md", "1234")) == "silo s would hold 21 bytes; it may hold 20"
    assert apply_update(tmp_path, limited, modify("a.md", "123")) is None
    assert apply_update(tmp_path, limited, add("b.md", "1")) is None
    # What is there already is no change, even if the quota was lowered meanwhile.
    assert apply_update(tmp_path, silo(max_bytes=5), add("b.md", "1")) is None


def test_what_a_killed_write_left_behind_does_not_count(tmp_path, notes):
    (notes / ".0123456789abcdef.tmp").write_text("x" * 100)
    assert apply_update(tmp_path, silo(max_files=2, max_bytes=20), add("a.md")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_disk_that_does_not_let_us_is_raised_and_leaves_the_old_file(tmp_path, notes, monkeypatch, step, number):
    real = getattr(os, step)

    def failing(*args, **kwargs):
        if step != "open" or args[1] & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, step, failing)
    with pytest.raises(OSError, match=os.strerror(number)):
        apply_update(tmp_path, silo(), modify("old.md"))
    monkeypatch.undo()
    assert texts_below(notes) == {"old.md": "old"}


def test_a_folder_that_is_not_where_it_should_be_is_raised(tmp_path, notes):
    for path in ("notes/old.md", "~nobody-here/notes"):
        with pytest.raises(OSError, match=r"old\.md|home"):
            apply_update(tmp_path, silo(path=path), add("a.md"))


def test_a_name_that_the_disk_cannot_have_is_refused_for_good(tmp_path, notes, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENAMETOOLONG, "File name too long")

    monkeypatch.setattr(os, "replace", refuse)
    assert "does not take this filename" in apply_update(tmp_path, silo(), add("a.md"))
    assert sorted(texts_below(notes)) == ["old.md"]


NAMES = st.sampled_from(["a.md", "b.md", "d/a.md", "d/e/b.txt"])
TEXTS = st.sampled_from(["", "x", "yy", "ß" * 10, "z" * 15])
UPDATES = st.lists(
    st.builds(add, NAMES, TEXTS) | st.builds(modify, NAMES, TEXTS) | st.builds(delete, NAMES), min_size=1, max_size=12
)
LIMITED = silo(max_files=3, max_bytes=38)


def model(files, update):
    """Say what a change makes of a folder that is a dict, and whether it is refused."""
    there = files.get(update.filename)
    if update.action == "delete":
        return {name: text for name, text in files.items() if name != update.filename}, False
    if there == update.content:
        return files, False
    after = {**files, update.filename: update.content}
    is_refused = (
        (there is None if update.action == "modify" else there is not None)
        or len(after) > LIMITED.max_files
        or sum(len(text.encode()) for text in after.values()) > LIMITED.max_bytes
    )
    return (files, True) if is_refused else (after, False)


@settings(max_examples=40, deadline=None)
@given(UPDATES, st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_changes_made_again_are_the_same_changes(updates, times):
    files = {}
    with tempfile.TemporaryDirectory() as project, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        (Path(project) / "notes").mkdir()
        for update, count in zip(updates, times, strict=False):
            files, is_refused = model(files, update)
            for _ in range(count):
                assert bool(apply_update(Path(project), LIMITED, update)) == is_refused
                assert texts_below(Path(project) / "notes") == files
