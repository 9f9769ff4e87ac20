"""``loomq fake-llm`` as a process."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

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
