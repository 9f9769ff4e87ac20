"""Names that leave the workspace, links that move, and writes that appear whole."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loomq.errors import UnsafePathError
from loomq.workspace import MAX_NAME_BYTES, WorkspaceManager, normal_ref, safe_path

SECRET = "outside secret"

ESCAPES = [
    "../secret.txt",
    "../../etc/passwd",
    "a/../../secret.txt",
    "a/../secret.txt",
    "..",
    "../",
    "./..",
    "./../secret.txt",
    "a/b/../../../secret.txt",
    "a//..//../secret.txt",
    "/etc/hostname",
    "/",
    "//etc/hostname",
    "//server/share/file",
    "/proc/self/environ",
    "",
    ".",
    "./",
    "././.",
    "C:secret.txt",
    "C:/secret.txt",
    "c:\\secret.txt",
    "\\secret.txt",
    "..\\secret.txt",
    "a\\..\\..\\secret.txt",
    "\\\\server\\share",
    "file\x00.txt",
    "\x00",
    "../secret.txt\x00.json",
    "a\nb.txt",
    "a\rb.txt",
    "tab\there",
    "\x1b[31mred.txt",
    "del\x7f.txt",
    "c1\x85.txt",
    "line\u2028break.txt",
    "lone\ud800surrogate",
    "x" * 256,
    "é" * 128 + "/a.txt",
    "a/" * 2100 + "b",
]


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture
def workspace(tmp_path, outside):
    return WorkspaceManager(tmp_path / "outside" / "root")


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_corpus_holds_forty_different_names():
    assert len(set(ESCAPES)) == len(ESCAPES) == 40


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
@pytest.mark.parametrize("action", ["resolve", "read", "write", "size", "delete"])
def test_a_name_that_leaves_the_workspace_is_refused(tmp_path, workspace, action, name):
    before = everything_below(tmp_path)
    call = {
        "resolve": workspace.resolve,
        "read": workspace.read_text,
        "write": lambda ref: workspace.write_text(ref, "x"),
        "size": workspace.size,
        "delete": workspace.delete,
    }[action]
    with pytest.raises(UnsafePathError):
        call(name)
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_a_name_that_leaves_the_workspace_has_no_normal_spelling(name):
    with pytest.raises(UnsafePathError):
        normal_ref(name)


@pytest.mark.parametrize(("name", "normal"), [("./a//b.txt", "a/b.txt"), ("a/./b/", "a/b"), ("...", "...")])
def test_a_ref_has_one_normal_spelling(name, normal):
    assert normal_ref(name) == normal


@pytest.mark.parametrize(
    "name", ["notes.md", "./a/b.txt", "a//b.txt", "...", "~root", "%2e%2e/x", "a b/ünï.txt", "d/a:b"]
)
def test_an_unusual_name_inside_is_kept(workspace, name):
    workspace.write_text(name, "kept")
    assert workspace.read_text(name) == "kept"
    assert workspace.resolve(name).is_relative_to(workspace.root)


def test_text_and_json_come_back_as_they_were(workspace):
    ref = workspace.write_json("goal/data.json", {"ß": [1, None, "x"]})
    assert ref == "goal/data.json"
    assert workspace.read_json(ref) == {"ß": [1, None, "x"]}
    assert workspace.size(ref) == workspace.resolve(ref).stat().st_size


def test_a_file_that_is_missing_is_named(workspace):
    workspace.write_text("there.txt", "x")
    with pytest.raises(FileNotFoundError, match=r"not/here\.txt"):
        workspace.read_text("not/here.txt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        workspace.size("gone.txt")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(workspace):
    workspace.write_text("report.txt", "old")
    with contextlib.suppress(ZeroDivisionError), workspace.open_write("report.txt") as file:
        file.write(b"new but ")
        1 / 0  # noqa: B018
    assert workspace.read_text("report.txt") == "old"
    assert everything_below(workspace.root) == ["report.txt"]


def test_a_write_is_invisible_until_it_is_whole(workspace):
    workspace.write_text("report.txt", "old")
    with workspace.open_write("report.txt") as file:
        file.write(b"new")
        file.flush()
        assert workspace.read_text("report.txt") == "old"
    assert workspace.read_text("report.txt") == "new"


@pytest.mark.parametrize("target", ["file", "folder", "inside"])
def test_a_link_is_never_followed(tmp_path, workspace, outside, target):
    workspace.write_text("own/real.txt", "own")
    if target == "file":
        (workspace.root / "link.txt").symlink_to(outside / "secret.txt")
        name = "link.txt"
    elif target == "folder":
        (workspace.root / "linked").symlink_to(outside)
        name = "linked/secret.txt"
    else:
        (workspace.root / "linked").symlink_to(workspace.root / "own")
        name = "linked/real.txt"
    before = everything_below(tmp_path)
    with pytest.raises(UnsafePathError):
        workspace.read_text(name)
    with pytest.raises(UnsafePathError):
        workspace.write_text(name, "overwritten")
    with pytest.raises(UnsafePathError):
        workspace.delete(name)
    assert [ref for ref, _ in workspace.walk()] == ["own/real.txt"]
    assert everything_below(tmp_path) == before
    assert (outside / "secret.txt").read_text() == SECRET


def test_a_link_that_circles_is_refused(workspace):
    workspace.write_text("a.txt", "a")
    (workspace.root / "loop").symlink_to("loop")
    with pytest.raises(UnsafePathError):
        workspace.read_text("loop")
    with pytest.raises(UnsafePathError):
        workspace.read_text("loop/x")


def test_a_workspace_may_itself_stand_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    workspace = WorkspaceManager(tmp_path / "alias")
    workspace.write_text("a.txt", "a")
    assert (tmp_path / "real" / "a.txt").read_text() == "a"
    assert safe_path(tmp_path / "alias", "a.txt") == tmp_path / "real" / "a.txt"


def test_a_pipe_or_folder_is_no_file_and_does_not_block(workspace):
    workspace.write_text("folder/a.txt", "a")
    os.mkfifo(workspace.root / "pipe")
    with pytest.raises(UnsafePathError, match="regular"):
        workspace.read_text("pipe")
    with pytest.raises(UnsafePathError, match="regular"):
        workspace.read_text("folder")
    for name in ("pipe", "folder"):
        with pytest.raises(UnsafePathError, match="regular"):
            workspace.delete(name)
    assert everything_below(workspace.root) == ["folder", "folder/a.txt", "pipe"]


def test_a_deleted_file_is_gone_and_its_folder_stays(workspace):
    workspace.write_text("folder/a.txt", "a")
    workspace.delete("folder/a.txt")
    assert everything_below(workspace.root) == ["folder"]
    for name in ("folder/a.txt", "no/a.txt"):
        with pytest.raises(FileNotFoundError, match=name):
            workspace.delete(name)


def test_a_bounded_read_counts_bytes_and_says_when_there_are_more(workspace):
    workspace.write_text("a.txt", "ßß")
    assert workspace.read_text("a.txt", 4) == "ßß"
    with pytest.raises(OSError, match=r"larger than 3 bytes: 'a\.txt'") as caught:
        workspace.read_text("a.txt", 3)
    assert caught.value.errno == errno.EFBIG


def test_a_bounded_read_of_an_endless_file_ends(workspace, monkeypatch):
    workspace.write_text("a.txt", "")
    with (workspace.root / "a.txt").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        workspace.read_text("a.txt", 1000)


def test_walk_lists_regular_files_in_the_order_of_their_refs(workspace, monkeypatch):
    refs = ["a", "b-c", "b.txt", "b/a/x", "b/a.txt", "b/z", "b0", "c/deep/er/f", ".hidden", ".tmp"]
    for size, ref in enumerate(refs):
        workspace.write_text(ref, "x" * size)
    os.mkfifo(workspace.root / "pipe")
    monkeypatch.chdir(workspace.root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("b/socket")
        (workspace.root / "empty").mkdir()
        (workspace.root / "link").symlink_to("a")
        (workspace.root / "b/up").symlink_to("..")
        (workspace.root / "b/.0123456789abcdef.tmp").write_text("half a wri")
        assert list(workspace.walk()) == sorted((ref, size) for size, ref in enumerate(refs))


def test_walk_says_when_there_is_no_folder(workspace):
    with pytest.raises(FileNotFoundError):
        list(workspace.walk())


def test_walk_goes_no_deeper_than_refs_do(workspace, monkeypatch):
    workspace.write_text("top.txt", "x")
    monkeypatch.chdir(workspace.root)
    name = Path("d" * 250)
    for _ in range(MAX_NAME_BYTES // 250 + 1):
        name.mkdir()
        os.chdir(name)
        Path("e").touch()
    found = [ref for ref, _ in workspace.walk()]
    assert found == [*("/".join([str(name)] * depth) + "/e" for depth in range(16, 0, -1)), "top.txt"]
    assert all(workspace.size(ref) <= 1 for ref in found)


# The one who swaps is a process of its own, so that it really runs between two system calls of ours.
SWAP_FOLDER = """
import contextlib, os, sys
root, outside, swaps = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(root)
for number in range(swaps // 2):
    os.rename("work", "real")
    with contextlib.suppress(FileExistsError):  # the writer was faster and made a folder
        os.symlink(outside, "work")
    while True:
        with contextlib.suppress(OSError):
            os.rename("work", f"swapped_{number}")
        try:
            os.rename("real", "work")
            break
        except OSError:  # the writer was faster once more
            number += swaps
"""
SWAP_FILE = """
import os, sys
root, outside, swaps = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(os.path.join(root, "work"))
for _ in range(swaps // 2):
    os.symlink(os.path.join(outside, "secret.txt"), "spare")
    os.rename("spare", "secret.txt")
    os.link("kept", "plain")
    os.rename("plain", "secret.txt")
"""


@pytest.mark.parametrize("swap", [SWAP_FOLDER, SWAP_FILE], ids=["folder", "file"])
def test_a_link_swapped_in_ten_thousand_times_leads_nowhere(workspace, outside, swap):
    workspace.write_text("work/secret.txt", "own")
    workspace.write_text("work/kept", "own")
    served = refused = 0
    command = [sys.executable, "-I", "-c", swap, str(workspace.root), str(outside), "10000"]
    actions = (
        lambda: workspace.read_text("work/secret.txt"),
        lambda: workspace.write_text("work/new.txt", "x"),
        lambda: workspace.delete("work/new.txt"),
        lambda: workspace.delete("work/secret.txt"),
        lambda: workspace.write_text("work/secret.txt", "own"),
        lambda: next((ref for ref, size in workspace.walk() if size == len(SECRET)), None),
    )
    with subprocess.Popen(command) as swapper:
        while swapper.poll() is None:
            for action in actions:
                try:
                    assert action() in {"own", "work/new.txt", "work/secret.txt", None}
                    served += 1
                except (UnsafePathError, FileNotFoundError):
                    refused += 1
    assert swapper.returncode == 0
    assert served
    assert refused
    assert (outside / "secret.txt").read_text() == SECRET
    assert [name for name in everything_below(outside) if not name.startswith("root")] == ["secret.txt"]
