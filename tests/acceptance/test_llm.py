"""LLM workers through a real worker node: prompt over HTTP, answer through parser and contract, faults and retries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from loomq.errors import GoalFailedError
from loomq.llm.settings import NAMES
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import fake_llm
from loomq.testing.llm import FakeServer

NODE = ("-c", "2", "-l", "DEBUG")
CANARY = "canary-7c1e52aa90"

RULES = [
    {"contains": "Classify busy.", "status": 429, "retry_after": 2.5, "times": 1},
    {"contains": "Classify lost.", "fault": "cut", "text": "x" * 99, "times": 3},
    {"contains": "Classify late.", "status": 429, "retry_after": 0.5, "times": 1},
    {"contains": "Classify vague.", "text": "It might be an animal.", "times": 1},
    {"contains": "Classify shy.", "fault": "refusal"},
    {"contains": "Classify odd.", "json": {"label": 7}},
    {"contains": "Classify long.", "fault": "truncated", "text": "x" * 400},
    {"contains": "Classify hanging.", "fault": "hang"},
    {"contains": "Classify locked.", "status": 401, "message": f"not {CANARY}"},
    {"contains": '"text": "animal"', "json": {"label": "chained"}, "prompt_tokens": 3, "completion_tokens": 2},
    {"text": 'Sure:\n```json\n{"label": "animal"}\n```', "prompt_tokens": 30, "completion_tokens": 5},
]
WORKERS = {
    **dict.fromkeys(["plain", "busy", "lost", "late", "vague", "shy", "odd", "long", "locked"], ""),
    "near": "default_model_tier: local",
    "far": "default_model_tier: frontier",
    "moved": "",
    "hanging": "max_retries: 0\ntimeout_seconds: 1",
    "short": "max_input_tokens: 50",
}
WIRES = {"near": "ollama", "plain": "anthropic", "far": "openai"}
RUNNING: dict[str, FakeServer] = {}


@pytest.fixture(scope="module", autouse=True)
def provider():
    """The one provider of this module, up before its node."""
    with fake_llm(RULES, keys=[CANARY]) as server:
        RUNNING["provider"] = server
        yield server


def write_worker(project, name, more=""):
    project.write(
        f"workers/{name}.yaml",
        f"name: {name}\nsystem_prompt: Classify {name}.\n"
        "output_schema: {type: object, properties: {label: {type: string}}, required: [label]}\n"
        f"retry_backoff: {{initial: 0.05, jitter: false}}\n{more}\n",
    )


def stock(project):
    """Write the workers, and give each tier a provider of its own."""
    for name, more in WORKERS.items():
        write_worker(project, name, more)
    project.pipeline(
        "two",
        """
          - {name: first, worker_type: plain, input_mapping: {text: goal.instruction}}
          - {name: second, worker_type: plain, tier: frontier, input_mapping: {text: first.output.label}}
        """,
    )
    project.write("deploy/router_rules.yaml", "tier_overrides: {moved: frontier}\n")
    tiers = {"LOCAL_BACKEND": "ollama", "STANDARD_BACKEND": "anthropic", "FRONTIER_BACKEND": "openai"}
    given = RUNNING["provider"].environment("anthropic", key=CANARY)
    project.env = {**given, **tiers, "FRONTIER_MODEL": "fake-large", "HOME": str(project.folder)}


def ask(shop, name, text="a cat", **options):
    return submit_task(name, {"text": text}, loom=shop.loom, **options)


def asked(provider, name):
    return [entry for entry in provider.journal if f"Classify {name}." in str(entry.body)]


@pytest.mark.parametrize("name", WIRES)
def test_an_llm_worker_answers_with_the_object_in_the_model_s_text(shop, provider, name):
    handle = ask(shop, name)

    assert handle.result(timeout=30) == {"label": "animal"}
    (stage,) = handle.stages()
    assert (stage.model_used, stage.attempt) == ("fake-large" if name == "far" else "fake-small", 1)
    assert stage.token_usage == {"prompt_tokens": 30, "completion_tokens": 5}
    entry = asked(provider, name)[-1]
    assert entry.wire == WIRES[name]
    assert "a cat" in str(entry.body)


def test_a_pipeline_of_llm_workers_hands_on_what_each_said(shop):
    result = submit_goal("a cat", pipeline="two", loom=shop.loom).result(timeout=30)

    assert result["first"] == {"label": "animal"}
    assert result["second"] == {"label": "chained"}
    line = {entry["stage"]: entry for entry in result["_timeline"]}
    assert (line["first"]["model_used"], line["second"]["model_used"]) == ("fake-small", "fake-large")
    assert line["second"]["token_usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_the_router_s_override_decides_the_model(shop, provider):
    handle = ask(shop, "moved")

    assert handle.result(timeout=30) == {"label": "animal"}
    assert handle.stages()[0].model_used == "fake-large"
    assert asked(provider, "moved")[0].wire == "openai"


def test_a_rate_limit_is_waited_out_for_as_long_as_the_provider_says(shop, provider):
    handle = ask(shop, "busy")

    assert handle.result(timeout=30) == {"label": "animal"}
    (stage,) = handle.stages()
    assert (stage.attempt, len(stage.history)) == (2, 1)
    assert "429" in stage.history[0]["error"]["message"]
    refused, answered = (datetime.fromisoformat(entry.at) for entry in asked(provider, "busy"))
    assert 2.5 <= (answered - refused).total_seconds() < 15


def test_a_short_wait_takes_no_attempt(shop, provider):
    handle = ask(shop, "late")

    assert handle.result(timeout=30) == {"label": "animal"}
    (stage,) = handle.stages()
    assert (stage.attempt, stage.deliveries, len(asked(provider, "late"))) == (1, 1, 2)


@pytest.mark.parametrize("name", ["lost", "vague"])
def test_a_lost_connection_and_an_answer_without_an_object_are_asked_again(shop, name):
    handle = ask(shop, name)

    assert handle.result(timeout=30) == {"label": "animal"}
    assert handle.stages()[0].attempt == 2


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("shy", "PipelineWorkerError", "refused to answer"),
        ("odd", "PipelineValidationError", "the output breaks its contract"),
        ("long", "PipelineWorkerError", "max_output_tokens"),
        ("locked", "PipelineWorkerError", "401"),
    ],
)
def test_what_another_try_would_not_mend_fails_the_goal_at_once(shop, provider, name, kind, told):
    before = len(asked(provider, name))
    handle = ask(shop, name)

    with pytest.raises(GoalFailedError) as caught:
        handle.result(timeout=30)
    assert caught.value.error["type"] == kind
    assert told in caught.value.error["message"]
    assert handle.stages()[0].attempt == 1
    assert len(asked(provider, name)) == before + 1


def test_a_provider_that_hangs_costs_the_stage_its_time_and_nothing_more(shop):
    with pytest.raises(GoalFailedError) as caught:
        ask(shop, "hanging").result(timeout=30)
    assert caught.value.error["type"] == "PipelineTimeoutError"
    assert ask(shop, "plain").result(timeout=30) == {"label": "animal"}


def test_a_prompt_over_max_input_tokens_is_not_sent(shop, provider):
    with pytest.raises(GoalFailedError, match="max_input_tokens is 50"):
        ask(shop, "short", "x" * 500).result(timeout=30)
    assert not asked(provider, "short")


def test_the_key_is_in_no_log_and_nowhere_in_the_database(shop):
    ask(shop, "plain").result(timeout=30)
    with pytest.raises(GoalFailedError):
        ask(shop, "locked").result(timeout=30)

    url = shop.loom.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT s::text FROM stages s UNION ALL SELECT g::text FROM goals g").fetchall()
    assert any("locked" in row for (row,) in rows)
    assert not [row for (row,) in rows if CANARY in row]
    assert "loomq.worker.plain" in shop.node.text()
    assert CANARY not in shop.node.text()


def test_a_threads_pool_asks_over_one_event_loop(project, loom, start_node, provider):
    write_worker(project, "plain")
    project.env = {**provider.environment("openai", key=CANARY), "HOME": str(project.folder)}
    start_node("-P", "threads", "-c", "4")

    handles = [submit_task("plain", {"text": str(number)}, loom=loom) for number in range(8)]
    assert [handle.result(timeout=30) for handle in handles] == [{"label": "animal"}] * 8


def test_a_node_without_a_provider_fails_the_goal_and_names_the_variables(project, loom, start_node):
    write_worker(project, "plain")
    project.env = {**dict.fromkeys(NAMES, ""), "HOME": str(project.folder)}
    start_node("-c", "1")

    with pytest.raises(GoalFailedError, match="no language model is configured") as caught:
        submit_task("plain", {"text": "a cat"}, loom=loom).result(timeout=30)
    assert "ANTHROPIC_API_KEY" in caught.value.error["hint"]
    assert caught.value.error["retryable"] is False


SHIPPED = Path(__file__).parents[2]
TEXT = "Order 4711 of 3 May has not arrived. I want my 20 euros back."


def test_the_shipped_triage_extracts_classifies_and_sums_up(project, loom, start_node):
    for name in ("workers/extractor", "workers/classifier", "workers/summarizer", "pipelines/triage"):
        shutil.copy(SHIPPED / f"{name}.yaml", project.folder / f"{name}.yaml")
    said = [
        {"contains": "Read the named fields", "json": {"fields": {"order": "4711", "phone": None}}},
        {
            "contains": "into exactly one",
            "json": {"category": "refund", "confidence": 0.9, "reason": "It asks for it."},
        },
        {"contains": "Sum up the text", "text": 'Here:\n```json\n{"summary": "A late order."}\n```'},
    ]
    with fake_llm(said) as server:
        project.env = {**server.environment("openai"), "HOME": str(project.folder)}
        start_node("-c", "1")
        context = {"text": TEXT, "fields": ["order", "phone"], "categories": ["refund", "praise"]}
        result = submit_goal("", pipeline="triage", context=context, loom=loom).result(timeout=30)

        prompts = [json.loads(entry.body["messages"][-1]["content"]) for entry in server.journal]
    assert {name: value for name, value in result.items() if name != "_timeline"} == {
        "facts": {"order": "4711", "phone": None}, "category": "refund", "confidence": 0.9, "summary": "A late order.",
    }  # fmt: skip
    assert prompts == [
        {"text": TEXT, "fields": ["order", "phone"]},
        {"text": TEXT, "categories": ["refund", "praise"], "facts": {"order": "4711", "phone": None}},
        {"text": TEXT, "facts": {"order": "4711", "phone": None}, "category": "refund"},
    ]


def test_the_extractive_summarizer_comes_up_for_one_run_and_is_asked_over_openai_s_wire(project):
    shutil.copy(SHIPPED / "workers/pydocs_summarizer.yaml", project.folder / "workers")
    project.pipeline(
        "brief",
        "- {name: summary, worker_type: pydocs_summarizer, input_mapping: {text: goal.context.text}}",
        "output: {summary: summary.output.summary, by: summary.model_used}\n",
    )
    project.env = {**dict.fromkeys(NAMES, ""), "HOME": str(project.folder)}
    journal = project.folder / "journal.jsonl"
    loomq = [sys.executable, "-m", "loomq.cli.main"]
    text = "A broker keeps messages until a worker takes them away."
    context = json.dumps({"text": text})

    def run(*before):
        return subprocess.run(
            [*before, *loomq, "run", "brief", "--context", context, "--timeout", "60", "--json"],
            cwd=project.folder, env=project.environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    done = run(
        *loomq, "fake-llm", "--extractive", "--port", "0", "--journal", str(journal), "--unless-configured", "--"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert (result["summary"], result["by"]) == (text, "loomq-extractive-1 (not an LLM)")
    (entry,) = map(json.loads, journal.read_text().splitlines())
    assert (entry["wire"], entry["path"]) == ("openai", "/v1/chat/completions")
    assert entry["body"].keys() == {"model", "messages", "max_completion_tokens", "response_format"}
    assert [message["role"] for message in entry["body"]["messages"]] == ["system", "user"]
    assert json.loads(entry["body"]["messages"][1]["content"]) == {"text": text}

    without = run()
    assert without.returncode == 1
    assert "loomq fake-llm --extractive" in without.stderr
