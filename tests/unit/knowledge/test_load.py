"""Sources and silos from the disk: what is read, what is passed over, what is refused and how that is told."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.errors import KnowledgeError
from loomq.knowledge import load
from loomq.knowledge.load import Piece, load_folder, load_source
from loomq.knowledge.spec import FolderSilo, KnowledgeSource


def source(path, **more):
    return KnowledgeSource(path=str(path), **more)


def silo(path="notes"):
    return FolderSilo(name="guides", type="folder", path=str(path))


def write(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def refs(pieces):
    return [piece.file for piece in pieces]


def test_a_source_is_read_as_it_is(tmp_path):
    write(tmp_path, {"docs/guide.rst": "\ufeffGuide ß\n"})
    assert load_source(tmp_path, source("docs/guide.rst")) == Piece("docs/guide.rst", "docs/guide.rst", "Guide ß\n")
    assert load_source(Path("/nowhere"), source(tmp_path / "docs/guide.rst")).text == "Guide ß\n"


def test_the_operator_s_own_paths_may_be_at_home_and_pass_through_links(tmp_path, monkeypatch):
    write(tmp_path / "home", {"guide.md": "x", "notes/a.md": "a"})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "link.md").symlink_to("home/guide.md")
    (tmp_path / "linked").symlink_to("home/notes")
    assert load_source(tmp_path, source("~/guide.md")).text == "x"
    assert load_source(tmp_path, source("link.md")).text == "x"
    assert load_source(tmp_path, source("docs/../link.md")).text == "x"
    assert refs(load_folder(tmp_path, silo("~/notes"))) == ["a.md"]
    assert refs(load_folder(tmp_path, silo("linked"))) == ["a.md"]


def test_a_few_shot_source_is_numbered_if_it_is_a_list_of_examples(tmp_path):
    write(tmp_path, {"good.yaml": "- {input: a, output: {b: 1}}", "prose.md": "Be brief.", "broken.json": "[{"})
    few = [
        load_source(tmp_path, source(name, inject_as="few_shot")) for name in ("good.yaml", "prose.md", "broken.json")
    ]
    assert [piece.text for piece in few] == ['Example 1\nInput: a\nOutput: {"b":1}', "Be brief.", "[{"]
    assert all(piece.few_shot for piece in few)
    assert load_source(tmp_path, source("good.yaml")).text == "- {input: a, output: {b: 1}}"


@pytest.mark.parametrize(
    ("path", "told", "way_out"),
    [
        ("gone.md", "knowledge source gone.md is not there", "required: false"),
        ("no/gone.md", "knowledge source no/gone.md is not there", "relative to the project"),
        ("~nobody-here/a.md", "is not there", "required: false"),
        ("loop", "is not there|cannot be loaded", ""),
        ("nul\x00.md", "is not there", "required: false"),
        ("folder", "not a regular file", "use regular files"),
        ("folder/a.md/b", "leads to something that is no folder", "relative to the project"),
        (".", "not a regular file", "use regular files"),
        ("/", "names no file", "use regular files"),
        ("pipe", "not a regular file", "use regular files"),
        ("latin.txt", r"latin.txt is not UTF-8 text \(byte 2\)", "save it as UTF-8"),
        ("long.txt", "long.txt is too large", "it may have 100 bytes"),
    ],
)
def test_a_source_that_cannot_be_loaded_is_told_with_the_way_out(tmp_path, path, told, way_out):
    write(tmp_path, {"folder/a.md": "a", "latin.txt": b"Gr\xfc\xdfe", "long.txt": "x" * 101})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(KnowledgeError, match=told) as caught:
        load_source(tmp_path, source(path, max_bytes=100))
    assert way_out in caught.value.hint
    assert not caught.value.retryable


def test_no_source_is_larger_than_a_silo_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_FOLDER_BYTES", 100)
    write(tmp_path, {"fits.txt": "x" * 100, "long.txt": "x" * 101})
    assert len(load_source(tmp_path, source("fits.txt")).text) == 100
    with pytest.raises(KnowledgeError, match="too large"):
        load_source(tmp_path, source("long.txt", max_bytes=1000))


def test_a_folder_gives_its_texts_in_order(tmp_path):
    texts = ["B.MD", "a.md", "b.Txt", "c.yaml", "c.yml", "d.json", "d/e.csv", "d/e/f.toml", "z-ß.md"]
    others = ["a.py", "noext", "a.md.bak", ".hidden.md", ".git/a.md", "d/.cache/b.md", "md"]
    write(tmp_path / "notes", dict.fromkeys([*texts, *others], "x"))
    pieces = load_folder(tmp_path, silo())
    assert refs(pieces) == sorted(texts)
    assert pieces[1] == Piece("guides", "a.md", "x")
    assert {piece.few_shot for piece in pieces} == {False}


def test_what_siloignore_names_is_not_even_read(tmp_path):
    write(tmp_path / "notes", {"a.md": "a", "b.csv": b"\xff", "drafts/c.md": "c", "drafts/d.md": "d"})
    write(
        tmp_path / "notes",
        {".siloignore": "\ufeff*.csv\n# no drafts\ndrafts/\n!drafts/d.md\n", "deep/.siloignore": "*"},
    )
    assert refs(load_folder(tmp_path, silo())) == ["a.md", "drafts/d.md"]


def test_links_pipes_and_sockets_are_passed_over(tmp_path, monkeypatch):
    write(tmp_path, {"outside/secret.md": "secret", "notes/a.md": "a"})
    folder = tmp_path / "notes"
    (folder / "secret.md").symlink_to("../outside/secret.md")
    (folder / "out").symlink_to("../outside")
    (folder / "up").symlink_to("..")
    (folder / "same.md").symlink_to("a.md")
    os.mkfifo(folder / "pipe.md")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.md")
        assert refs(load_folder(tmp_path, silo())) == ["a.md"]


@pytest.mark.parametrize(
    ("texts", "told", "way_out"),
    [
        ({}, r"silo guides \(notes\) is not there", "required: false"),
        ({"notes": "a file"}, r"silo guides \(notes\) leads to something that is no folder", "required: false"),
        ({"notes/a.md": b"\xff"}, r"silo guides \(notes\): a\.md is not UTF-8 text \(byte 0\)", "save it as UTF-8"),
        ({"notes/.siloignore": b"\xff"}, r"\.siloignore is not UTF-8", "save it as UTF-8"),
        ({"notes/.siloignore": "x" * 70_000}, r"\.siloignore is too large", "65,536 bytes"),
        ({"notes/a\nb.md": "x"}, r"a\\nb\.md' holds control characters", "plain names"),
        ({"notes/a.md": "x" * 60, "notes/b.md": "x" * 41}, r"b\.md is too large", "a silo 100; name in .siloignore"),
    ],
)
def test_a_silo_that_cannot_be_loaded_is_told_with_its_file(tmp_path, monkeypatch, texts, told, way_out):
    monkeypatch.setattr(load, "MAX_FOLDER_BYTES", 100)
    write(tmp_path, texts)
    with pytest.raises(KnowledgeError, match=told) as caught:
        load_folder(tmp_path, silo())
    assert way_out in caught.value.hint


def test_a_siloignore_that_is_a_link_is_an_error_and_not_none(tmp_path):
    write(tmp_path / "notes", {"a.md": "a", "rules": "*"})
    (tmp_path / "notes/.siloignore").symlink_to("rules")
    with pytest.raises(KnowledgeError, match=r"\.siloignore"):
        load_folder(tmp_path, silo())


def test_what_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "notes", {"a.md": "a"})
    monkeypatch.setattr(load.WorkspaceManager, "read_text", refuse)
    with pytest.raises(KnowledgeError, match="Permission denied"):
        load_folder(tmp_path, silo())


def test_a_silo_may_be_full_to_the_last_byte_and_count_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_FOLDER_BYTES", 10)
    write(tmp_path / "notes", {"a.md": "ßßßßß", "b.md": ""})
    assert len(load_folder(tmp_path, silo())) == 2
    write(tmp_path / "notes", {"b.md": "x"})
    with pytest.raises(KnowledgeError, match="too large"):
        load_folder(tmp_path, silo())


def test_an_endless_file_is_read_only_as_far_as_it_may_go(tmp_path):
    write(tmp_path / "notes", {"a.md": ""})
    os.truncate(tmp_path / "notes/a.md", 1 << 40)
    with pytest.raises(KnowledgeError, match=r"a\.md is too large"):
        load_folder(tmp_path, silo())
    with pytest.raises(KnowledgeError, match=r"a\.md is too large"):
        load_source(tmp_path, source("notes/a.md", max_bytes=1000))


@given(st.text(max_size=40))
def test_any_path_gives_a_piece_or_a_knowledge_error(path):
    for loaded in (
        lambda: load_source(Path("/nowhere"), source(path or "x")),
        lambda: load_folder(Path("/nowhere"), silo(path or "x")),
    ):
        with suppress(KnowledgeError):  # "~" is there
            loaded()
