"""House rules that no linter knows, read from the source itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL_ROOM = 400
SOURCES = sorted((ROOT / "loomq").rglob("*.py"))

FORBIDDEN = {
    "an unsafe YAML loader": r"yaml\.(?:load|load_all|unsafe_load|full_load)\(",
    "a swallowed exception": r"except(?: Base)?(?: ?Exception)?:\s*(?:#.*)?\s*pass\b",
    "work left for later": r"\b(?:TODO|FIXME|XXX)\b",
    "a banner": r"^\s*# ?[-=#*]{4,}",
}
SHAPELESS = {"common", "core", "helpers", "managers", "misc", "utils"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_source_holds_nothing_forbidden(what: str):
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [
        f"{name_of(path)}:{text.count(chr(10), 0, hit.start()) + 1}"
        for path in SOURCES
        for text in [path.read_text(encoding="utf-8")]
        for hit in pattern.finditer(text)
    ]
    assert not found, what


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an unsafe YAML loader", "data = yaml.load(text)"),
        ("a swallowed exception", "try:\n    go()\nexcept Exception:\n    pass\n"),
        ("a swallowed exception", "try:\n    go()\nexcept:  # whatever\n    pass\n"),
        ("work left for later", "# TODO: later"),
        ("a banner", "# ------- helpers"),
    ],
)
def test_the_patterns_know_what_they_forbid(what: str, text: str):
    assert re.search(FORBIDDEN[what], text, re.MULTILINE)


def test_a_file_fits_a_room():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > FULL_ROOM}


def test_modules_are_named_after_what_they_hold():
    assert not [name_of(path) for path in SOURCES if SHAPELESS & set(path.relative_to(ROOT).with_suffix("").parts)]


def test_every_module_opens_with_one_sentence():
    mute = [name_of(path) for path in SOURCES if not re.match(r'r?"""[^\n]+', path.read_text(encoding="utf-8"))]
    assert not [name for name in mute if (ROOT / name).stat().st_size]
