"""``loomq explain-error`` knows every id."""

from __future__ import annotations

import json

import pytest

from loomq.cli.main import COMMANDS
from loomq.problems import EXPLANATIONS
from loomq.services.explanations import _MORE, explain


def test_every_id_is_explained_and_nothing_else():
    assert list(_MORE) == list(EXPLANATIONS)


@pytest.mark.parametrize("id_", EXPLANATIONS)
def test_an_explanation_has_a_cause_and_a_command_that_exists(id_):
    found = explain(id_)
    assert found.cause
    words = found.next.split()
    assert words[0] in {"loomq", "file", "mv", "python"}
    assert words[0] != "loomq" or words[1] in COMMANDS


def test_what_stands_for_a_later_version_is_refused_by_this_one(program):
    example = explain("LQ120")
    program.write("workers/later.yaml", f"name: later\nsystem_prompt: Do it.\n{example.wrong}\n")
    found = json.loads(program("validate", "--json", code=2)[0])
    assert [problem["id"] for problem in found["problems"]] == ["LQ120"]
    program.write("workers/later.yaml", f"name: later\nsystem_prompt: Do it.\n{example.right}\n")
    program("validate")


def test_the_text_says_what_why_and_what_next(empty):
    out, _ = empty("explain-error", "lq103")
    assert out.splitlines() == [
        f"LQ103: {EXPLANATIONS['LQ103']}",
        "  likely cause  a block was copied, and one of its keys not renamed",
        "  wrong         {a: 1, a: 2}",
        "  right         {a: 1, b: 2}",
        "  next          loomq validate",
    ]
    assert json.loads(empty("explain-error", "LQ103", "--json")[0])["example"]["right"] == "{a: 1, b: 2}"


def test_an_unknown_id_ends_with_4_and_the_ids_near_it(empty):
    assert "near it: LQ110, LQ111" in empty("explain-error", "LQ119", code=4)[1]
    error = json.loads(empty("explain-error", "what", "--json", code=4)[1])["error"]
    assert (error["exit_code"], error["hint"]) == (4, "ids run from LQ101 to LQ220")
