"""What a model may ask for: everything that it says is checked before any disk is touched."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON
from unit.test_workspace import ESCAPES

from loomq.inline import inline_json
from loomq.knowledge.spec import FolderSilo
from loomq.knowledge.updates import Update, read_updates

SILOS = {
    "notes": FolderSilo(name="notes", type="folder", path="notes", permissions="read_write", max_bytes=20),
    "laws": FolderSilo(name="laws", type="folder", path="laws"),
}
GOOD = {"silo": "notes", "action": "add", "filename": "a.md", "content": "x"}
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "silo": st.sampled_from(["notes", "laws", "no"]) | JSON,
        "action": st.sampled_from(["add", "modify", "delete"]) | JSON,
        "filename": st.sampled_from(["a.md", "b/c.txt", *ESCAPES]) | st.text(max_size=10) | JSON,
        "content": st.text(max_size=25) | JSON,
        "more": JSON,
    },
)


def asked(**changes):
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("one", "update"),
    [
        (GOOD, Update("notes", "add", "a.md", "x")),
        (asked(action="modify", content=""), Update("notes", "modify", "a.md", "")),
        (asked(action="delete", content=...), Update("notes", "delete", "a.md", None)),
        (asked(action="delete", content=None), Update("notes", "delete", "a.md", None)),
        (asked(action="delete", content=""), Update("notes", "delete", "a.md", None)),
        (asked(filename="./b//C.MD"), Update("notes", "add", "b/C.MD", "x")),
        (asked(filename="ünï côdé.v2.json"), Update("notes", "add", "ünï côdé.v2.json", "x")),
        (asked(content="ß" * 10), Update("notes", "add", "a.md", "ß" * 10)),
    ],
)
def test_what_may_be_done_is_read(one, update):
    assert read_updates([one], SILOS) == ([update], [])


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        ("add a.md", "not a mapping"),
        (None, "not a mapping"),
        ([], "not a mapping"),
        (asked(mode="0777"), "unknown key mode; known are silo, action, filename, content"),
        (asked(silo="secrets"), "there is no silo secrets"),
        (asked(silo=...), "there is no silo None"),
        (asked(silo=["notes"]), "there is no silo a list"),
        (asked(silo="laws"), "silo laws may only be read"),
        (asked(action="move"), "the action is none of add, modify, delete"),
        (asked(action=["add"]), "the action is none of add, modify, delete"),
        (asked(filename=...), "the filename is not a text"),
        (asked(filename=7), "the filename is not a text"),
        (asked(filename=".siloignore"), "no part of a filename may begin with a dot"),
        (asked(filename=".git/hooks.md"), "no part of a filename may begin with a dot"),
        (asked(filename="a/.0123456789abcdef.tmp"), "no part of a filename may begin with a dot"),
        (asked(filename=".md"), "no part of a filename may begin with a dot"),
        (asked(filename="run.sh"), "the filename has to end in one of .csv .json .md .toml .txt .yaml .yml"),
        (asked(filename="a.md/b"), "the filename has to end in one of .csv .json .md .toml .txt .yaml .yml"),
        (asked(filename="md"), "the filename has to end in one of .csv .json .md .toml .txt .yaml .yml"),
        (asked(content=...), "the content is not a text"),
        (asked(content={"a": 1}), "the content is not a text"),
        (asked(content="a\x00b"), "the content holds a NUL character"),
        (asked(content="\ud800"), "the content is not Unicode text"),
        (asked(content="x" * 21), "the content takes 21 bytes; silo notes may hold 20"),
        (asked(content="ß" * 11), "the content takes 22 bytes; silo notes may hold 20"),
        (asked(action="delete"), "delete takes no content"),
    ],
)
def test_what_may_not_be_done_is_refused_with_the_reason(one, reason):
    updates, (refused,) = read_updates([one], SILOS)
    assert not updates
    assert refused.reason == reason


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
@pytest.mark.parametrize("action", ["add", "modify", "delete"])
def test_a_name_that_leaves_the_silo_is_refused(action, name):
    for filename in (name, f"{name}.md"):
        updates, refused = read_updates([asked(action=action, filename=filename, content=...)], SILOS)
        assert not updates or filename == "..md"
        assert len(refused) == 1


@pytest.mark.parametrize("value", [None, {}, GOOD, "a.md", 7, True])
def test_what_is_no_list_is_one_refusal(value):
    updates, (refused,) = read_updates(value, SILOS)
    assert not updates
    assert refused.reason == "silo_updates is not a list"


def test_a_hundred_changes_are_read_and_not_one_more():
    assert len(read_updates([GOOD] * 100, SILOS)[0]) == 100
    updates, (refused,) = read_updates([GOOD] * 101, SILOS)
    assert not updates
    assert refused.asked == {"silo_updates": "101 entries"}
    assert refused.reason == "more than 100 changes at once"


def test_one_refusal_leaves_the_others():
    updates, refused = read_updates([asked(filename="1.md"), "x", asked(filename="2.md"), asked(silo="laws")], SILOS)
    assert [update.filename for update in updates] == ["1.md", "2.md"]
    assert [one.reason for one in refused] == ["not a mapping", "silo laws may only be read"]


def test_a_refusal_shows_what_was_asked_for_short_and_without_secrets():
    secret = "sk-ant-api03-" + "a1B2" * 20
    one = asked(filename="a\x00.md", content=f"{secret} \ud800 " + "x" * 10_000, mode=0.5, more=[1], even={}, flag=True)
    _, (refused,) = read_updates([one], SILOS)
    assert len(json.dumps(refused.asked)) < 1000
    assert secret not in str(refused)
    assert refused.asked["filename"] == "a\ufffd.md"
    assert (refused.asked["mode"], refused.asked["more"], refused.asked["even"]) == ("a number", "a list", "a mapping")


@given(st.lists(ASKED | JSON, max_size=4) | JSON)
def test_every_entry_is_an_update_or_a_refusal_that_can_be_stored(value):
    updates, refused = read_updates(value, SILOS)
    assert len(updates) + len(refused) == (len(value) if isinstance(value, list) else 1)
    for one in refused:
        assert one.reason
        inline_json({"asked": one.asked, "reason": one.reason}, what="it", limit_bytes=10_000)
    for update in updates:
        inline_json([update.filename, update.content], what="it", limit_bytes=10_000)
