"""The environment wins over the user's file; keys may stand in files; nothing that may be a key is repeated."""

from __future__ import annotations

import pytest

from loomq import redaction
from loomq.errors import ConfigError
from loomq.llm.settings import LLMSettings, is_loopback


def home_with(tmp_path, text):
    file = tmp_path / ".loomq" / "config.yaml"
    file.parent.mkdir()
    file.write_text(text)
    return tmp_path


def test_the_environment_wins_over_the_file(tmp_path):
    home = home_with(tmp_path, "ollama_url: http://file:1\nollama_model: from-file\nx-note: mine\n")
    found = LLMSettings.load({"OLLAMA_URL": "http://env:2", "OLLAMA_MODEL": ""}, home)
    assert found.get("OLLAMA_URL") == "http://env:2"
    assert found.get("OLLAMA_MODEL") == "from-file"
    assert found.get("OPENAI_MODEL") is None


def test_without_a_file_the_environment_is_all(tmp_path):
    assert LLMSettings.load({"OPENAI_MODEL": "m"}, tmp_path).get("OPENAI_MODEL") == "m"


def test_a_key_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "key").write_text("canary-key\n")
    found = LLMSettings({"OPENAI_API_KEY_FILE": str(tmp_path / "key")}).secret("OPENAI_API_KEY")
    assert found is not None
    assert found.get_secret_value() == "canary-key"
    assert "canary" not in repr(found)


def test_keys_are_known_from_then_on_wherever_they_stood(tmp_path, monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())
    (tmp_path / "key").write_text("canary in a file\n")
    home = home_with(tmp_path, f"openai_api_key_file: {tmp_path / 'key'}\nanthropic_api_key: canary in the settings\n")
    LLMSettings.load({}, home).secret("OPENAI_API_KEY")
    assert "canary" not in redaction.redacted("canary in a file, canary in the settings")


def test_the_environment_s_key_file_wins_over_the_file_s_key(tmp_path):
    (tmp_path / "key").write_text("from-env")
    home = home_with(tmp_path, "openai_api_key: from-file\n")
    found = LLMSettings.load({"OPENAI_API_KEY_FILE": str(tmp_path / "key")}, home).secret("OPENAI_API_KEY")
    assert found is not None
    assert found.get_secret_value() == "from-env"


@pytest.mark.parametrize(("content", "told"), [(None, "cannot be read"), (b"", "empty"), (b"\xff\xfe", "not text")])
def test_a_key_file_that_is_of_no_use_is_named(tmp_path, content, told):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        LLMSettings({"OPENAI_API_KEY_FILE": str(path)}).secret("OPENAI_API_KEY")
    assert "OPENAI_API_KEY_FILE" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "antropic_api_key: canary-1\n",
        "openai_api_key: {canary: 2}\n",
        "openai_api_key: 12345678\n",
        'openai_api_key: "canary\n',
        "openai_api_key: canary\nopenai_api_key: canary\n",
        "- canary\n",
    ],
)
def test_a_broken_file_is_told_with_its_place_and_without_its_values(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        LLMSettings.load({}, home_with(tmp_path, text))
    assert "config.yaml:1:" in str(caught.value) or "config.yaml:2:" in str(caught.value)
    for secret in ("canary", "12345678"):
        assert secret not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:80",
        "http://",
        "http://[",
        "https://user:pw@host",
        "https://host?key=1",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="OLLAMA_URL"):
        LLMSettings({"OLLAMA_URL": url}).url("OLLAMA_URL", "http://x")


def test_an_address_loses_its_last_slash():
    assert LLMSettings({"OLLAMA_URL": "http://h:1/v1/"}).url("OLLAMA_URL", "x") == "http://h:1/v1"


def test_only_this_machine_is_loopback():
    assert all(map(is_loopback, ["http://localhost:1", "http://127.0.0.9/v1", "http://[::1]:5"]))
    assert not any(map(is_loopback, ["http://localhost.example", "http://10.0.0.1", "https://api.openai.com"]))
