"""Inputs on the command line."""

from __future__ import annotations

import io

import click
import pytest

from loomq.cli.request import parse_inputs, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("true", True),
        ("null", None),
        ('{"a": [1]}', {"a": [1]}),
        ('"3"', "3"),
        ("plain words", "plain words"),
        ("", ""),
        ("True", "True"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("01", "01"),
        ("a=b", "a=b"),
        ('"@home"', "@home"),
    ],
)
def test_a_value_is_json_if_it_is_json_and_text_if_not(text, value):
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


def test_a_value_is_read_from_a_file(tmp_path):
    (tmp_path / "data.json").write_text('{"n": 1}')
    (tmp_path / "note.txt").write_text("grüße\n", encoding="utf-8")
    assert parse_value(f"@{tmp_path}/data.json") == {"n": 1}
    assert parse_value(f"@{tmp_path}/note.txt") == "grüße\n"


def test_a_value_is_read_from_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert parse_value("@-") == [1, 2]


def test_inputs_win_over_the_context_and_later_ones_over_earlier_ones():
    assert parse_inputs(["a=1", "a=2", "b=x=y"], '{"a": 0, "c": 3}') == {"a": 2, "b": "x=y", "c": 3}


def test_the_context_is_read_from_a_file(tmp_path):
    (tmp_path / "whole.json").write_text('{"a": 1}')
    assert parse_inputs([], f"@{tmp_path}/whole.json") == {"a": 1}


@pytest.mark.parametrize(
    ("pairs", "context", "said"),
    [
        (["novalue"], None, "key=value"),
        (["=1"], None, "key=value"),
        ([], "[1]", "JSON object"),
        ([], "{", "not JSON"),
        ([], '{"a": NaN}', "NaN is not JSON"),
        (["a=@/nowhere/at/all"], None, "no such file"),
    ],
)
def test_malformed_inputs_are_usage_errors(pairs, context, said):
    with pytest.raises(click.UsageError) as caught:
        parse_inputs(pairs, context)
    assert said in caught.value.format_message()


def test_a_file_that_is_not_text_is_a_usage_error(tmp_path):
    (tmp_path / "blob").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(click.UsageError, match="UTF-8"):
        parse_value(f"@{tmp_path}/blob")


@pytest.mark.parametrize("text", ["[1,", '{"a": }', "[" * 100_000])
def test_a_broken_list_or_object_is_refused_and_not_taken_for_text(text):
    with pytest.raises(click.UsageError, match="is not JSON"):
        parse_value(text)
