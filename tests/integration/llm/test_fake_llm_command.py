"""``loomq fake-llm`` as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from loomq.llm.settings import NAMES
from loomq.testing import wait_until


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loomq.cli.main", "fake-llm", "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = ""
        assert process.stdout
        while not lines.endswith("}\n}\n") and (line := process.stdout.readline()):
            lines += line
        yield process, json.loads(lines)
    finally:
        process.kill()
        process.communicate()


def chat(url: str, text: str, model: str = "fake-small") -> dict[str, object]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": "Bearer k"})
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_it_answers_by_its_rules_keeps_a_journal_and_ends_on_ctrl_c(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules:\n  - {contains: cat, json: {label: animal}}\n")
    journal = tmp_path / "journal.jsonl"
    with running("--port", "0", "--rules", str(tmp_path / "rules.yaml"), "--journal", str(journal)) as (process, told):
        answer = chat(told["url"], "a cat")
        assert answer["choices"][0]["message"]["content"] == '{"label": "animal"}'
        assert told["environment"]["OPENAI_BASE_URL"] == f"{told['url']}/v1"
        wait_until(journal.exists, "the journal")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    (entry,) = map(json.loads, journal.read_text().splitlines())
    assert (entry["wire"], entry["status"], entry["headers"]["authorization"]) == ("openai", 200, "***")


def test_the_extractive_one_names_what_to_set_and_needs_no_key():
    with running("--port", "0", "--extractive") as (process, told):
        assert told["environment"].keys() == {"OPENAI_BASE_URL", "OPENAI_MODEL"}
        answer = chat(told["url"], "A broker keeps messages until a worker takes them away.", told["models"][0])
        assert answer["model"].endswith("(not an LLM)")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def refused(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "loomq.cli.main", "fake-llm", *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_told(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules:\n  - {containz: cat}\n")
    assert refused("--rules", str(tmp_path / "rules.yaml"))[0] == 2
    assert "containz" in refused("--rules", str(tmp_path / "rules.yaml"))[1]
    assert refused("--extractive", "--rules", "x")[0] == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = refused("--port", str(taken.getsockname()[1]))
    assert (code, "--port 0" in text) == (3, True)


def beside(code: str, *options: str, home: str = "/nonexistent", **environment: str) -> subprocess.Popen[str]:
    """Start Python code beside a server; nothing but ``environment`` says what is configured."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.Popen(
        [sys.executable, "-m", "loomq.cli.main", "fake-llm", *options, "--", sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**kept, "HOME": home, **environment},
    )  # fmt: skip


ASK = """
import json, os, sys, urllib.request
body = {"model": os.environ["STANDARD_MODEL"], "messages": [{"role": "user", "content": "A lease keeps a job."}]}
head = {"content-type": "application/json"}
asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(), head)
print(json.load(urllib.request.urlopen(asked, timeout=10))["model"], os.environ["STANDARD_BACKEND"])
sys.exit(7)
"""


def test_a_command_reaches_the_server_by_its_environment_and_its_exit_code_is_kept(tmp_path):
    journal = tmp_path / "journal.jsonl"
    given = {"STANDARD_MODEL": "another", "ANTHROPIC_API_KEY": "k"}
    process = beside(ASK, "--extractive", "--port", "0", "--journal", str(journal), **given)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (7, "loomq-extractive-1 (not an LLM) openai\n"), err
    assert "loomq-extractive-1 (not an LLM) answers at http://127.0.0.1:" in err
    assert [json.loads(line)["status"] for line in journal.read_text().splitlines()] == [200]


def test_a_configured_model_leaves_the_command_alone():
    code = "import os; print({'OPENAI_BASE_URL', 'LOCAL_BACKEND'} & {*os.environ}, os.environ['OLLAMA_URL'])"
    given = {"OLLAMA_URL": "http://127.0.0.1:9", "OLLAMA_MODEL": "llama"}
    process = beside(code, "--extractive", "--unless-configured", **given)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "set() http://127.0.0.1:9\n"), err
    assert "llama of Ollama" in err


def test_a_key_without_a_model_is_not_enough_and_that_is_told():
    process = beside("", "--extractive", "--unless-configured", ANTHROPIC_API_KEY="k")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "set STANDARD_MODEL or ANTHROPIC_MODEL; loomq-extractive-1 (not an LLM) answers" in err


def test_a_user_s_file_with_errors_is_told_and_not_taken_for_none(tmp_path):
    (tmp_path / ".loomq").mkdir()
    (tmp_path / ".loomq" / "config.yaml").write_text("olama_url: http://x\n")
    process = beside("", "--extractive", "--unless-configured", home=str(tmp_path))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "config.yaml" in err


HEARS = "import signal, sys\nsignal.signal({0}, lambda *_: sys.exit(9))\nprint('up', flush=True)\nsignal.pause()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_through_and_the_command_decides_how_to_end(number):
    process = beside(HEARS.format(int(number)), "--extractive")
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(10) == 9
    process.communicate()


def test_a_command_that_a_signal_ends_gives_the_shell_s_code():
    process = beside("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "--extractive")
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL


def test_what_goes_only_with_a_command_or_only_without_is_told():
    assert refused("--unless-configured")[0] == 2
    assert refused("--json", "--", "true")[0] == 2
    code, text = refused("--extractive", "--", "no-such-command-here")
    assert (code, "no-such-command-here cannot be started" in text) == (2, True)
