"""A canary of every shape goes through a real node by every way there is, and is found nowhere afterwards."""

from __future__ import annotations

import base64
import json
import re
import sys

import psycopg
import pytest
from canaries import ASSIGNED, EXAMPLES
from celery import chain, chord

from loomq.cli import main
from loomq.errors import GoalFailedError, PayloadTooLargeError
from loomq.services import inspect
from loomq.services.submit import submit_goal, submit_task
from loomq.store import results
from loomq.testing import fake_llm, wait_until

NODE = ("-c", "1", "-l", "DEBUG")
KEY = "only-the-provider-knows-this-5d1"
CANARIES = [*EXAMPLES.values(), *ASSIGNED, (KEY, KEY)]
MARKS = [secret[:12] for _, secret in CANARIES]
RUNNING = {}

CALLS = [{"name": "leak", "arguments": {"said": text}} for text, _ in CANARIES]
LEAK = """
import os
from loomq.tools.base import SyncToolProvider


class Leak(SyncToolProvider):
    def get_definition(self):
        return {"name": "leak", "description": "Leak.", "parameters": {"type": "object"}}

    def execute_sync(self, arguments):
        said = [text for name, text in sorted(os.environ.items()) if name.startswith("CANARY_")]
        if arguments["said"] == said[0]:
            raise ValueError(*said)
        return "\\n".join(said)
"""


def _change(text):
    return {"silo": "notes", "action": "add", "filename": "told.md", "content": text}


SAYS = """
import logging
said = [text for name, text in sorted(os.environ.items()) if name.startswith("CANARY_")]
print("\\n".join(said), flush=True)
logging.getLogger("mine").warning("given %s", said)
"""


@pytest.fixture(scope="module", autouse=True)
def provider():
    """A provider that repeats keys in its refusals, up before the node."""
    told = "; ".join(text for text, _ in CANARIES)
    rules = [
        {"contains": "Be refused.", "status": 400, "message": told},
        {"contains": "Be cut.", "text": told.replace("{", "")},
        {"contains": "Use the tool.", "tool_results": 0, "text": told.replace("{", ""), "tool_calls": CALLS},
        {"contains": "Use the tool.", "text": json.dumps({"told": told, "silo_updates": [_change(told)]})},
        {"text": json.dumps({"told": told})},
    ]
    with fake_llm(rules, keys=[KEY]) as server:
        RUNNING["provider"] = server
        yield server


def stock(project):
    """Write workers that give their environment away."""
    project.worker(
        "tells", SAYS + 'return {"output": {"said": said, "by": dict.fromkeys(said, 1)}, "model_used": said[0]}'
    )
    project.worker("raises", SAYS + "try:\n    {}[said[0]]\nexcept KeyError as e:\n    raise ValueError(*said) from e")
    project.worker("hints", SAYS + 'raise BackendError("\\n".join(said), hint=" ".join(said))')
    for name, prompt in {"refused": "Be refused.", "cut": "Be cut.", "told": "Tell."}.items():
        project.write(f"workers/{name}.yaml", f"name: {name}\nsystem_prompt: {prompt}\nmax_retries: 0\n")
    project.write("mine/leak.py", LEAK)
    project.write(
        "workers/tooled.yaml",
        "name: tooled\nsystem_prompt: Use the tool.\nmax_retries: 0\nstream: true\ncache: {ttl_seconds: 60}\n"
        "knowledge_silos:\n  - {name: leak, type: tool, provider: mine.leak.Leak}\n"
        "  - {name: notes, type: folder, path: notes, permissions: read_write}\n",
    )
    project.worker("echo")
    project.worker("large", 'return {"output": {"text": "x" * 50_000_000}}')
    project.pipeline(
        "both",
        """
  - {name: first, worker_type: tells, input_mapping: {}}
  - {name: second, worker_type: echo, input_mapping: {heard: first.output}}
""",
    )
    said = {f"CANARY_{number:02}": text for number, (text, _) in enumerate(CANARIES)}
    project.env = {**RUNNING["provider"].environment("openai", key=KEY), "HOME": str(project.folder), **said}


def found(text):
    return sorted({mark for mark in MARKS if mark in text})


def opened(value):
    """Write a value of Redis as text; kombu packs a message's body in base64."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
    return text + "".join(base64.b64decode(body).decode() for body in re.findall(r'"body": "([A-Za-z0-9+/=]+)"', text))


def task(shop, name):
    return shop.loom.app.tasks[f"loomq.worker.{name}"]


class Heard:
    """Everything that is published on the broker's channels: Celery's events."""

    def __init__(self, loom):
        self._connection = loom.app.connection_for_read()
        self._pubsub = self._connection.default_channel.client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe("*")
        self._pubsub.get_message(timeout=5)
        self.text = ""

    def has(self, text):
        """Read what has come, and look for a text in all of it."""
        while (message := self._pubsub.get_message(timeout=0.1)) is not None:
            self.text += opened(message["data"])
        return text in self.text

    def close(self):
        self._pubsub.close()
        self._connection.release()


def everything_in_redis(loom):
    def read(producer):
        client = producer.channel.client
        readers = {b"list": lambda key: client.lrange(key, 0, -1), b"hash": client.hgetall, b"set": client.smembers}
        readers |= {b"zset": lambda key: client.zrange(key, 0, -1), b"string": client.get}
        return "".join(opened(key) + opened(readers[client.type(key)](key)) for key in client.scan_iter())

    return loom.app.broker.run(read)


def everything_in_postgres(loom):
    url = loom.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {table: str(connection.execute(f"SELECT t::text FROM {table} t").fetchall()) for (table,) in tables}


def test_no_canary_is_found_in_any_place_that_keeps_or_shows_something(shop, monkeypatch, capsys):
    loom, heard = shop.loom, Heard(shop.loom)
    result = submit_goal("", pipeline="both", loom=loom).result(timeout=30)
    assert len(result["first"]["said"]) == len(CANARIES)
    assert result["second"]["got"]["heard"] == result["first"], "what is passed on is what is kept"
    assert "sk-ant-***" in result["first"]["said"]
    handles = [submit_task(name, {}, loom=loom) for name in ("raises", "hints", "refused", "cut")]
    for handle in handles:
        with pytest.raises(GoalFailedError) as caught:
            handle.result(timeout=30)
        assert not found(json.dumps(caught.value.error))
        assert "***" in caught.value.error["message"]
    assert not found(json.dumps(submit_task("told", {}, loom=loom).result(timeout=30)))
    tooled = submit_task("tooled", {}, loom=loom)
    assert not found(json.dumps(tooled.result(timeout=60)))
    kept = loom.database.call("SELECT (SELECT count(*) FROM tool_results), (SELECT count(*) FROM llm_cache)", {})[0]
    assert tuple(kept) == (len(CALLS), 2)
    assert [event for event in tooled.events() if event.kind == "stage_text"]
    notes = shop.project.folder / "notes" / "told.md"
    wait_until(notes.exists, "the change of the silo")
    assert not found(notes.read_text())
    sent = json.dumps(RUNNING["provider"].journal[-1].body)
    assert not found(sent), "what a tool gives is hidden from the model as well"
    assert not found(json.dumps(task(shop, "tells").delay({}).get(timeout=30)))
    for call in (chain(task(shop, "raises").s({}), task(shop, "echo").s()), task(shop, "raises").s({})):
        with pytest.raises(Exception, match=r"\*\*\*") as failed:
            call.apply_async().get(timeout=30)
        assert not found(str(failed.value))
    with pytest.raises(Exception, match=r"\*\*\*"):
        chord([task(shop, "raises").s({}), task(shop, "tells").s({})], task(shop, "echo").s()).apply_async().get(
            timeout=30
        )
    wait_until(lambda: heard.has("task-failed"), "the events")
    heard.close()

    assert found("\n".join(text for text, _ in CANARIES)) == sorted(set(MARKS)), "this would find any of them"
    assert found(everything_in_redis(loom)) == []
    kept = everything_in_postgres(loom)
    assert {"goals", "stages", "task_results", "chord_parts"} <= kept.keys()
    assert {table: found(text) for table, text in kept.items() if found(text)} == {}
    assert found(heard.text) == []
    log = shop.node.text()
    assert "Traceback (most recent call last)" in log
    assert found(log) == []

    for name, value in shop.project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for arguments in (["show", str(handles[0].goal_id)], ["list"], ["try", "raises", "--debug"], ["try", "told"]):
        for more in ([], ["--json"]):
            main.run([*arguments, *more])
            shown = capsys.readouterr()
            assert found(shown.out) == []
            assert found(shown.err) == []


def test_what_the_user_gave_is_kept_as_given_and_shown_redacted(shop):
    text, secret = EXAMPLES["GitHub"]
    handle = submit_task("echo", {"use": text}, loom=shop.loom)
    assert handle.result(timeout=30) == {"got": {"use": "ghp_***"}}
    view = inspect.goal(shop.loom, handle.goal_id)
    assert view.context == {"use": text}
    assert secret not in json.dumps(view.to_json())


def test_fifty_megabytes_come_in_by_no_door(shop):
    large = {"text": "x" * 50_000_000}
    for door in (
        lambda: submit_task("echo", large, loom=shop.loom),
        lambda: submit_goal("", pipeline="both", context=large, loom=shop.loom),
        lambda: submit_goal(large["text"], pipeline="both", loom=shop.loom),
        lambda: task(shop, "echo").delay(large),
    ):
        with pytest.raises(PayloadTooLargeError, match="kept inline") as caught:
            door()
        assert "file ref" in caught.value.hint
    with pytest.raises(GoalFailedError, match="the output of stage large takes more than") as failed:
        submit_task("large", {}, loom=shop.loom).result(timeout=30)
    assert "file ref" in failed.value.error["hint"]


@pytest.mark.parametrize(
    "kind", ["os.system", "system", "builtins.SystemExit", "loomq.errors.ConfigError", "0bad name"]
)
def test_a_stored_failure_comes_back_as_a_named_copy_whatever_class_it_names(shop, tmp_path, kind):
    touched = tmp_path / "touched"
    error = {"exc_type": kind, "exc_module": "os", "exc_message": [f"touch {touched}"]}
    results.put(shop.loom.database, f"forged-{kind}", "FAILURE", {"status": "FAILURE", "result": error})
    outcome = shop.loom.app.AsyncResult(f"forged-{kind}")
    with pytest.raises(Exception, match="touch") as caught:
        outcome.get(timeout=5)
    assert type(caught.value).__mro__[1:] == Exception.__mro__
    assert type(caught.value).__module__ == "loomq.remote"

    group = f"forged-group-{kind}"
    results.open_chord(shop.loom.database, group, dict(task(shop, "echo").s().set(task_id=f"body-{kind}")))
    results.add_part(shop.loom.database, group, "part", 0, "FAILURE", error)
    shop.loom.app.backend.send_chord_body(group)
    with pytest.raises(Exception, match="Dependency part raised"):
        shop.loom.app.AsyncResult(f"body-{kind}").get(timeout=5)
    assert not touched.exists()
