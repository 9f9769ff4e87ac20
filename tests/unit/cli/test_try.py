"""``loomq try`` runs what a queue would run, and shows all of it."""

from __future__ import annotations

import json

import pytest

from loomq.testing.llm import fake_llm

ECHO = "name: echo\nworker_kind: processor\nprocessing_backend: mine_cli.echo.Backend\ntimeout_seconds: 30\n"
LLM = """
name: label
worker_kind: llm
system_prompt: Say a label.
input_schema: {type: object, required: [text], properties: {text: {type: string}}}
output_schema: {type: object, required: [label], properties: {label: {enum: [a, b]}}}
"""


@pytest.fixture
def model(program, monkeypatch):
    """A worker with a language model, and a fake provider that it asks."""
    program.write("workers/label.yaml", LLM)
    rules = [
        {"contains": "odd", "json": {"label": "z"}},
        {"contains": "prose", "text": "no idea"},
        {"json": {"label": "a"}},
    ]
    with fake_llm(rules) as server:
        for name, value in server.environment("openai").items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_processor_is_run_and_what_it_prints_does_not_spoil_the_json(program):
    out, err = program("try", "echo", "-i", "text=hey", "--json")
    found = json.loads(out)
    assert found["output"] == {"value": {"text": "hey"}, "contract": "none", "errors": []}
    assert (found["kind"], found["tier"], found["prompt"], found["error"]) == ("processor", "local", None, None)
    assert err == "heard {'text': 'hey'}\n"


def test_the_payload_may_come_whole_and_single_inputs_win(program):
    program.write("in.json", '{"text": "file", "n": 1}')
    found = json.loads(program("try", "echo", "--payload", "@in.json", "-i", "text=mine", "--json")[0])
    assert found["input"]["value"] == {"text": "mine", "n": 1}
    assert "--payload is not JSON" in program("try", "echo", "--payload", "{", code=2)[1]


def test_a_failing_worker_ends_with_1_and_says_where_and_why_and_what_next(program):
    _, err = program("try", "echo", "-i", "boom=true", code=1)
    lines = err.splitlines()[1:]
    assert lines[0] == "error: worker echo failed in stage echo: ValueError: boom"
    assert lines[1] == f"  where: {program.folder}/mine_cli/echo.py:11"
    assert lines[2] == "  cause: ValueError: boom"
    assert lines[3] == "  see where it happened: loomq try echo --debug, with the same input"


def test_a_worker_that_takes_too_long_is_stopped_at_its_limit(program):
    program.write("workers/slow.yaml", ECHO.replace("echo\n", "slow\n", 1).replace("30", "0.2"))
    out, err = program("try", "slow", "-i", "nap=20", "--json", code=1)
    found = json.loads(out)
    assert (found["error"]["type"], found["took_ms"] < 10_000) == ("PipelineTimeoutError", True)
    assert "timeout_seconds" in json.loads(err.splitlines()[-1])["error"]["hint"]


def test_what_a_queue_would_run_again_is_said_to_be_so(program):
    out, err = program("try", "echo", "-i", "later=true", "--json", code=1)
    assert json.loads(out)["error"]["retryable"] is True
    assert "in a goal it would be run again" in err


def test_the_prompt_as_sent_and_the_raw_answer_are_shown(program, model):
    found = json.loads(program("try", "label", "-i", "text=x", "--json")[0])
    sent = json.loads(json.dumps(found["prompt"]))
    assert sent["system"] == "Say a label."
    assert json.loads(sent["messages"][0]["content"]) == {"text": "x"}
    assert json.loads(found["answer"]["content"]) == found["output"]["value"] == {"label": "a"}
    assert (found["input"]["contract"], found["output"]["contract"]) == ("holds", "holds")
    assert (found["tier"], found["token_usage"]["completion_tokens"] > 0) == ("standard", True)
    out, _ = program("try", "label", "-i", "text=x")
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == [
        "worker", "input", "prompt", "answer", "output", "used", "took",
    ]  # fmt: skip


def test_an_output_that_breaks_its_contract_is_shown_and_is_the_worker_s_fault(program, model):
    out, err = program("try", "label", "-i", "text=odd", "--json", code=1)
    found = json.loads(out)
    assert (found["output"]["value"], found["output"]["contract"]) == ({"label": "z"}, "broken")
    error = json.loads(err)["error"]
    assert (error["type"], error["exit_code"]) == ("PipelineWorkerError", 1)
    assert "output_schema in workers/label.yaml" in error["hint"]


def test_an_answer_without_an_object_is_shown_raw(program, model):
    out, _ = program("try", "label", "-i", "text=prose", "--json", code=1)
    found = json.loads(out)
    assert (found["answer"]["content"], found["output"]["value"]) == ("no idea", None)


def test_an_input_that_breaks_its_contract_is_the_caller_s_fault_and_asks_no_model(program, model):
    out, err = program("try", "label", "--json", code=2)
    assert json.loads(out)["input"]["contract"] == "broken"
    assert "workers/label.yaml" in json.loads(err)["error"]["hint"]
    assert not list(model.journal)


def test_an_unknown_worker_is_answered_with_the_nearest(program):
    assert 'did you mean "echo"?' in program("try", "ecko", code=2)[1]
