"""A process that dies in the middle of a change, and one that swaps links meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from unit.test_workspace import SECRET, SWAP_FILE, SWAP_FOLDER, everything_below

from loomq.errors import KnowledgeError
from loomq.knowledge.load import load_folder
from loomq.knowledge.spec import FolderSilo
from loomq.knowledge.updates import Update, apply_update
from loomq.workspace import WorkspaceManager

SILO = FolderSilo(name="s", type="folder", path="notes", permissions="read_write", max_files=2)
OLD = "old" * 10
NEW = "new!" * 5000
# Every child makes the same change and is killed one step later, until one comes to the end.
KILLED = """
import builtins, itertools, json, os, signal, sys
from pathlib import Path
import loomq.workspace
from loomq.knowledge.spec import FolderSilo
from loomq.knowledge.updates import Update, apply_update

project, silo, update, old = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])

def die_after(left):
    def step():
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def stepped(real):
        def call(*args, **kwargs):
            step()
            result = real(*args, **kwargs)
            step()
            return result
        return call

    class Halving:
        def __init__(self, file):
            self.file = file
        def __enter__(self):
            return self
        def __exit__(self, *_):
            self.file.close()
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            step()
            self.file.write(data[len(data) // 2 :])
        def __getattr__(self, name):
            return getattr(self.file, name)

    for name in ("mkdir", "open", "fsync", "replace", "unlink"):
        setattr(os, name, stepped(getattr(os, name)))
    loomq.workspace.open = lambda descriptor, mode: Halving(builtins.open(descriptor, mode))

for at in itertools.count():
    here = project / str(at)
    (here / "notes").mkdir(parents=True)
    if old is not None:
        (here / "notes" / "a.md").write_text(old)
    child = os.fork()
    if not child:
        die_after(at)
        os._exit(0 if apply_update(here, FolderSilo.model_validate(silo), Update(*update)) is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(status)
"""


@pytest.mark.parametrize(
    ("update", "old"),
    [
        (Update("s", "add", "deep/er/a.md", NEW), None),
        (Update("s", "modify", "a.md", NEW), OLD),
        (Update("s", "delete", "a.md"), OLD),
    ],
    ids=["add", "modify", "delete"],
)
def test_a_change_that_is_killed_at_any_step_leaves_old_or_new_and_can_be_made_again(tmp_path, update, old):
    said = [SILO.model_dump(), [update.silo, update.action, update.filename, update.content], old]
    command = [sys.executable, "-I", "-c", KILLED, str(tmp_path), *map(json.dumps, said)]
    subprocess.run(command, check=True, timeout=60)
    left = [seen(tmp_path / str(at)) for at in range(len(list(tmp_path.iterdir())))]
    before, after = ({} if old is None else {"a.md": old}), ({} if update.content is None else {update.filename: NEW})
    changed = left.index(after)
    assert changed >= 3
    assert left == [before] * changed + [after] * (len(left) - changed)
    torn = {path.stat().st_size for path in tmp_path.rglob(".*.tmp")}
    assert torn == ({0, len(NEW) // 2, len(NEW)} if update.content else set())
    for at in range(len(left)):
        assert apply_update(tmp_path / str(at), SILO, update) is None
        assert seen(tmp_path / str(at)) == after


def seen(project):
    """Read what a silo holds, as a prompt and a quota see it."""
    texts = {piece.file: piece.text for piece in load_folder(project, SILO)}
    assert [ref for ref, _ in WorkspaceManager(project / "notes").walk()] == list(texts)
    return texts


# A file is swapped so quickly that a thousand times may pass while nobody looks.
@pytest.mark.parametrize(("swap", "times"), [(SWAP_FOLDER, 1_000), (SWAP_FILE, 6_000)], ids=["folder", "file"])
def test_links_that_are_swapped_in_lead_nowhere(tmp_path, swap, times):
    outside, root = tmp_path / "outside", tmp_path / "notes"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    files = WorkspaceManager(root)
    for name in ("secret.txt", "kept"):
        files.write_text(f"work/{name}", "own")
    silo = SILO.model_copy(update={"max_files": 10_000})
    updates = [
        Update("s", "modify", "work/secret.txt", "changed"),
        Update("s", "delete", "work/secret.txt"),
        Update("s", "add", "work/secret.txt", "own"),
        Update("s", "add", "work/new.md", "own"),
        Update("s", "delete", "work/new.md"),
    ]
    made = refused = 0
    command = [sys.executable, "-I", "-c", swap, str(root), str(outside), str(times)]
    with subprocess.Popen(command) as swapper:
        while swapper.poll() is None:
            with contextlib.suppress(KnowledgeError):
                assert {piece.text for piece in load_folder(tmp_path, silo)} <= {"own", "changed"}
            for update in updates:
                try:
                    made, refused = (made, refused + 1) if apply_update(tmp_path, silo, update) else (made + 1, refused)
                except OSError:  # to be tried again
                    refused += 1
    assert swapper.returncode == 0
    assert made
    assert refused
    assert everything_below(outside) == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == SECRET
