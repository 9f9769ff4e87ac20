"""Keys are hidden by shape, by name and by value; what only looks a little like one stays."""

from __future__ import annotations

import base64
import json
import time
from uuid import uuid4

import pytest
from canaries import ASSIGNED, EXAMPLES
from hypothesis import given
from strategies import JSON

from loomq import redaction
from loomq.key_shapes import SHAPES
from loomq.redaction import excerpt, know, know_url, redacted, redacted_json

ORDINARY = [
    "key-value-pair api-version api_version2024 sk_learn sk-learn-contrib pk-1 hf_hub gsk_lib npm_config_cache",
    "the token count, 4096 tokens, max_tokens=4096, next_page_token: CAUQAA1234567890abcd, token=word",
    "Bearer authentication, Basic authentication, basic tokenization, bearer tokens; password: required",
    "def connect(host, password=None, token=self.token, api_key=os.environ['KEY'], secret=get_secret()): ...",
    "def connect(host: str, password: str | None = None, *, private_key: bytes) -> None",
    "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b 810920e54ad3646f6c835bdefaea0dbe1986aabb sha256:" + "ab12" * 16,
    "postgresql://user@host:5432/db https://example.com:8443/a@b?x=y http://[::1]:80/ mailto:a@b.example",
    "TASK SKIP MSG. ASIAN AKIAK shopping 12:30:AA eyJ a.b.c 1.2.3.4 the key is secret: never tell",
    "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 8).decode(),
    "the file begins with '-----BEGIN RSA PRIVATE KEY-----' and goes on in base64 to its end",
    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/app PWD=/home/user AuthorizationError=1",
]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())


def test_there_is_an_example_of_each_shape_and_there_are_enough_of_them():
    assert [shape.name for shape in SHAPES] == list(EXAMPLES)
    assert len(SHAPES) >= 30


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_key_is_known_by_its_shape_wherever_it_stands(name):
    text, secret = EXAMPLES[name]
    (own,) = (shape for shape in SHAPES if shape.name == name)
    assert secret[:8] not in own.hide(text), "its own shape has to know it"
    for before, after in [
        ("", ""),
        ("It said: ", ", so"),
        ('{"k": "', '"}'),
        ("('", "',)"),
        ("a\\n", "\\n"),
        ("x=", ""),
    ]:
        shown = redacted(before + text + after)
        assert secret[:8] not in shown
        assert shown.startswith(before)
        assert shown.endswith(after)
        assert redacted(shown) == shown
    assert secret[:8] not in json.dumps(redacted_json({"deep": [{"in": f"see {text}"}], text: 1}))


@pytest.mark.parametrize(("text", "secret"), ASSIGNED)
def test_a_secret_is_known_by_the_name_it_stands_behind(text, secret):
    assert secret not in redacted(text)
    assert secret not in json.dumps(redacted_json({"text": text}))


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text
    value = {"text": text, text: [text]}
    assert redacted_json(value) is value


def test_a_key_of_an_object_names_the_secret_behind_it():
    value = {"password": "hunter2", "api_key": "abcd", "n": {"session_token": uuid4().hex}, "note": "hunter2"}
    shown = {"password": "***", "api_key": "***", "n": {"session_token": "***"}, "note": "hunter2"}
    assert redacted_json(value) == shown
    plain = {"token": "COVID-19", "password": "required", "secret": "to good tea is time", "next_page_token": "a1" * 9}
    assert redacted_json(plain) is plain


def test_a_key_is_known_by_its_value_whatever_its_shape():
    assert redacted("the secret hunter2! failed", "hunter2!") == "the secret *** failed"


def test_a_key_that_holds_another_is_hidden_whole():
    assert redacted("abcdef abcd", "abcd", "abcdef") == "*** ***"


def test_what_is_too_short_to_be_a_key_hides_nothing():
    assert redacted("a cat", "a") == "a cat"


def test_what_the_process_was_given_is_hidden_by_value_and_words_are_not():
    know('pa"ss\\wörd1', None, "", "short1", "postgres")
    know_url("postgresql://u:p%40ssw0rd@h/d?x=1", "redis+socket:///tmp/s", None)
    value = {"a": ['pa"ss\\wörd1 p%40ssw0rd p@ssw0rd'], 'pa"ss\\wörd1': 1, "b": "postgres short1"}
    assert redacted_json(value) == {"a": ["*** *** ***"], "***": 1, "b": "postgres short1"}
    assert redacted(str(value["a"][0])) == "*** *** ***"


@given(JSON)
def test_a_redacted_value_has_the_form_of_the_one_it_was_made_of(value):
    def form(one):
        if isinstance(one, dict):
            return [form(each) for each in one.values()]
        return [form(each) for each in one] if isinstance(one, list) else type(one)

    assert form(redacted_json(value)) == form(value)
    assert redacted_json(redacted_json(value)) == redacted_json(value)


def test_a_value_may_be_as_deep_as_json_is():
    value = "password=hunter2"
    for _ in range(500):
        value = [value]
    assert "hunter" not in json.dumps(redacted_json(value))


@pytest.mark.parametrize(
    "seed", ["sk-", "eyJ-", "authorization:", "token:", "://a:", "key= ", "-----BEGIN ", "SG.a", "_"]
)
def test_no_text_takes_long_to_look_at(seed):
    text = seed * (64 * 1024 // len(seed))
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 1.5  # what grows with the square of the length took from ten seconds on


def test_an_excerpt_is_one_short_line_without_half_a_key():
    text = "word " * 38 + "hunter2-hunter2-hunter2" + " tail" * 100
    shown = excerpt(text, "hunter2-hunter2-hunter2")
    assert "hunter" not in shown
    assert len(shown) == 201
    assert "\n" not in excerpt("a\nb")
