"""What may be kept inline: JSON that Postgres can store."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON, OBJECTS

from loomq.errors import InlineValueError, PayloadTooLargeError
from loomq.inline import inline_json, storable_text


def _inline(value, limit=10_000):
    return inline_json(value, what="the output of stage s", limit_bytes=limit)


@given(JSON | OBJECTS)
def test_what_can_be_stored_comes_back_the_same(value):
    if "\x00" in _texts(value):
        with pytest.raises(InlineValueError, match="NUL"):
            _inline(value, 10**9)
    else:
        assert json.loads(_inline(value, 10**9)) == value


@given(st.text(alphabet=st.sampled_from("\\u0a\x00\"'"), max_size=12))
def test_a_nul_is_refused_and_what_only_looks_like_one_is_not(text):
    for value in (text, {text: 1}, [{"a": text}]):
        if "\x00" in text:
            with pytest.raises(InlineValueError, match="the output of stage s holds a NUL"):
                _inline(value)
        else:
            assert json.loads(_inline(value)) == value


def _texts(value):
    if isinstance(value, dict):
        return "".join(key + _texts(one) for key, one in value.items())
    if isinstance(value, list):
        return "".join(map(_texts, value))
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "a\\u0000b", "\\\\\\u0000", "u0000", "\\", "\\u"])
def test_the_written_form_of_a_nul_is_a_text_like_any_other(text):
    assert json.loads(_inline({"x": text})) == {"x": text}


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\\\x00", "\\\\\x00", "\\u0000\x00"])
def test_a_nul_is_found_behind_any_number_of_backslashes(text):
    with pytest.raises(InlineValueError, match="NUL"):
        _inline(text)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {"x": [float("-inf")]},
        "\ud800",
        {"\udfff": 1},
        {1, 2},
        b"x",
        type,
        {("a", "b"): 1},
        1j,
    ],
    ids=repr,
)
def test_what_is_not_json_is_refused(value):
    with pytest.raises(InlineValueError, match="the output of stage s is not JSON"):
        _inline({"value": value})


def test_a_value_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(InlineValueError, match="not JSON"):
        _inline(value)


def test_a_value_nested_too_deep_is_refused():
    value = {}
    for _ in range(100_000):
        value = {"x": value}
    with pytest.raises(InlineValueError, match="not JSON"):
        _inline(value, 10**6)
    with pytest.raises(PayloadTooLargeError, match="takes more than 20,000 bytes; at most 10,000"):
        _inline(value)
    while value:  # taken apart by hand: Python would do it by recursion
        value = value.get("x")


@pytest.mark.parametrize("text", ["x", "é", "€", "😀"])
def test_the_limit_is_of_bytes_and_is_itself_allowed(text):
    value = {"x": text * 100}
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert len(_inline(value, size).encode()) == size
    with pytest.raises(PayloadTooLargeError, match=f"{size:,} bytes; at most {size - 1:,}") as caught:
        _inline(value, size - 1)
    assert "write_json" in caught.value.hint


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"x": "x" * 50_000_000},
        lambda: {"x": "\U0001f600" * 12_500_000},
        lambda: ["x" * 100] * 500_000,
        lambda: [[1] * 10] * 2_000_000,
        lambda: dict.fromkeys(map(str, range(300_000)), "x" * 160),
    ],
    ids=["text", "wide text", "texts", "lists", "keys"],
)
def test_fifty_megabytes_are_refused_at_once_with_the_way_out(make):
    value = make()
    began = time.process_time()
    with pytest.raises(PayloadTooLargeError, match="at most 262,144 are kept inline") as caught:
        _inline(value, 256 * 1024)
    assert time.process_time() - began < 0.1
    assert "workspace" in caught.value.hint
    assert "file ref" in caught.value.hint


@given(st.text(alphabet=st.characters(), max_size=30))
def test_a_storable_text_can_be_stored(text):
    clean = storable_text(text)
    assert json.loads(_inline(clean)) == clean
    if "\x00" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text):
        assert clean == text


def test_a_storable_text_has_a_length():
    assert storable_text("x" * 8000) == "x" * 8000
    assert storable_text("x" * 1_000_000) == "x" * 8000 + " …"
