"""What docs/guarantees.md promises is shown by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_or_target_that_exists():
    text = (ROOT / "docs" / "guarantees.md").read_text()
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    makefile = (ROOT / "Makefile").read_text()
    rows = [line.split("|")[-2] for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) > 10
    for shown in rows:
        named = re.findall(r"`(test_\w+)`", shown)
        targets = re.findall(r"`make ([\w-]+)`", shown)
        assert named or targets, shown
        assert [name for name in named if f"def {name}(" not in tests] == []
        assert [name for name in targets if f"\n{name}:" not in makefile] == []
