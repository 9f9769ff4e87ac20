"""The shipped pipeline on a part of the real standard library, but for the two stages that need Postgres."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from loomq.contrib.pydocs.ask import Ask
from loomq.contrib.pydocs.place import database_url
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.errors import BackendError

STDLIB = Path(sysconfig.get_path("stdlib"))
QUOTE = {
    "symbol": "json.load", "package": "json", "citation": "json/__init__.py:1", "file": "json/__init__.py", "line": 1,
    "sentence": "Deserialize it.", "highlights": [], "text": "Deserialize it.",
    "every_word": True, "weight": 1, "score": 1,
}  # fmt: skip
WITHOUT_POSTGRES = {
    "index": {"corpus": "python-x", "passages": 1, "loaded": True, "table": "none"},
    "ask": {
        "question": "How?", "answer": "So.", "passages": [QUOTE],
        "every_word_found": True, "corpus": "python-x", "root": "/",
    },
}  # fmt: skip


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "library"
    for name in ("json", "ftplib.py", "socket.py", "contextlib.py", "textwrap.py"):
        source, target = STDLIB / name, root / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return root


def test_the_stages_fit_together_and_end_in_a_report(space, library, run_stages):
    outputs, result = run_stages(
        WITHOUT_POSTGRES,
        collect={"root": str(library)},
        readability={"min_sentences": 3},
        near_duplicates={"threshold": 0.5},
    )
    chunks = list(read_records(space, outputs["chunk"]["chunks_ref"], Chunk))
    assert {chunk.package for chunk in chunks} == {"json", "ftplib", "socket", "contextlib", "textwrap"}
    for chunk in chunks:
        first = chunk.text.split("\n")[0].strip()[:20]
        assert first in (library / chunk.file).read_text().split("\n")[chunk.line - 1].replace("\\\\", "\\")
    assert outputs["near_duplicates"]["groups"] > 0
    assert outputs["readability"]["packages"] > 2
    material = {entry["text"]: entry["citation"] for entry in outputs["digest"]["sentences"]}
    quoted = outputs["summary"]["sentences"]
    assert set(quoted) <= material.keys()
    assert outputs["summary"]["summary"] == " ".join(quoted) == result["summary"]
    page = Path(result["report"]).read_text()
    assert result["summary_by"].endswith("(not an LLM)")
    assert f"Written by <b>{result['summary_by']}</b>" in page
    assert material[quoted[0]] in page
    assert "json.load" in page
    assert result["figures"]["passages"] == len(chunks)
    assert space.read_json(outputs["report"]["json_ref"])["figures"] == result["figures"]


def test_a_second_run_writes_the_same_files(space, library, run_stages):
    files = []
    for goal_id in ("g1", "g2"):
        run_stages(WITHOUT_POSTGRES, goal_id=goal_id, collect={"root": str(library)})
        folder = space.root / goal_id
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


def test_a_question_of_nothing_is_refused_before_anything_is_opened(space):
    with pytest.raises(BackendError, match="empty"):
        Ask().process_sync({"question": " \0 "}, {})


@pytest.mark.parametrize(
    "given",
    ["postgresql+psycopg://u:p@127.0.0.1:5/db?sslmode=disable", "postgresql://u:p@127.0.0.1:5/db?sslmode=disable"],
)
def test_the_database_is_the_projects(space, monkeypatch, given):
    monkeypatch.setenv("LOOMQ_DATABASE_URL", given)
    assert database_url() == "postgresql://u:p@127.0.0.1:5/db?sslmode=disable"
    monkeypatch.delenv("LOOMQ_DATABASE_URL")
    assert database_url().startswith("postgresql://loomq@/loomq?host=")
