"""How a problem is shown."""

import re
from pathlib import Path

import loomq
from loomq.problems import EXPLANATIONS, Problem, listed, suggest

PROBLEM = Problem("LQ113", "no", "a,b.yaml", 2, 4, "x.y", hint="50% of\nit", source="x: ylang", width=5)


def test_the_text_form_has_a_caret_under_the_fault():
    assert PROBLEM.render().splitlines() == [
        "a,b.yaml:2:4: error[LQ113]: x.y: no; 50% of\N{REPLACEMENT CHARACTER}it",
        "    2 | x: ylang",
        "      |    ^^^^^",
    ]


def test_a_caret_stands_right_behind_tabs_and_in_long_lines():
    tabbed = Problem("LQ102", "no", "f", 1, 3, source="\t\tx", width=9)
    assert tabbed.render().splitlines()[-1] == "      | \t\t^"
    text = "a" * 5000 + "HERE" + "b" * 5000
    long = Problem("LQ102", "no", "f", 1, 5001, source=text, width=4).render().splitlines()
    at = long[2].index("^")
    assert long[1][at : at + 4] == "HERE"
    assert len(long[1]) < 200


def test_a_file_cannot_steer_the_terminal():
    evil = Problem("LQ110", "key \x1b[31mred\x07", "f", 1, 1, source="\x1b]0;title\x07")
    assert not set(evil.render()) & {"\x1b", "\x07"}


def test_the_github_form_escapes_what_has_a_meaning_there():
    assert PROBLEM.github().startswith("::error file=a%2Cb.yaml,line=2,col=4,title=LQ113::x.y: no; 50%25 of")
    assert "\n" not in PROBLEM.github()


def test_the_json_form_has_every_field_a_tool_needs():
    assert set(PROBLEM.to_json()) == {"id", "severity", "file", "line", "col", "path", "message", "hint"}


def test_only_a_near_name_is_suggested():
    assert suggest("sumarizer", ["summarizer", "counter"]) == 'did you mean "summarizer"?'
    assert suggest("zebra", ["summarizer", "counter"]) == ""


def test_a_long_list_of_names_is_cut():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(99)], most=2) == "0, 1, … (99 in all)"


def test_every_id_in_the_code_is_explained_and_every_explanation_is_used():
    sources = [file for file in Path(loomq.__file__).parent.rglob("*.py") if file.name != "problems.py"]
    used = {found for file in sources for found in re.findall(r"LQ\d{3}", file.read_text())}
    assert used == set(EXPLANATIONS)
