"""The rest of the command line with real services: what it prints as JSON, new projects that run, doctor, Flower."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema_rs
import psycopg
import pytest

from loomq.cli.main import COMMANDS
from loomq.services import inspect
from loomq.services.drawing import COLORS
from loomq.testing import wait_until

TEXT, NUMBER, BOOL = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
MAYBE = {"type": ["string", "null"]}


def shape(**keys: Any) -> dict[str, Any]:
    """Describe an object with these keys and no others."""
    return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


ANY = {}
STAGE = {"type": "object", "required": ["stage", "worker", "tier", "status", "attempt", "output", "error"]}
LINKS = {"parent": ANY, "rerun_of": MAYBE, "paused_at": MAYBE, "admitted_at": MAYBE, "waits_for_turn": BOOL}
TIMING = shape(
    makespan_ms=NUMBER, critical_path=several(TEXT), critical_path_ms={"type": "object"},
    totals_ms={"type": "object"}, stages={"type": "object"},
)  # fmt: skip
GOAL = shape(
    schema_version={"const": 1}, goal_id=TEXT, pipeline=TEXT, instruction=TEXT, context={"type": "object"},
    priority=TEXT, status={"enum": ["completed"]}, partial={"const": False}, created_at=TEXT, ended_at=TEXT,
    error={"type": "null"}, stages=several(STAGE), result={"type": "object"}, tokens=ANY, budget=ANY, cost=ANY,
    timing=TIMING, **LINKS,
)  # fmt: skip
EXPLAINED = shape(
    schema_version={"const": 1}, goal_id=TEXT, pipeline=TEXT, status=TEXT, partial=BOOL, error=ANY, tokens=ANY,
    budget=ANY, cost=ANY, stages=several(shape(stage=TEXT, status=TEXT, why=TEXT, items=ANY, children=ANY)),
    timing=TIMING, **LINKS,
)  # fmt: skip
EXPLAINED_STAGE = shape(
    schema_version={"const": 1}, goal_id=TEXT, pipeline=TEXT, stage={"const": "second"}, item={"type": "null"},
    status=TEXT, state=TEXT, why=TEXT, worker=TEXT, runs_pipeline=ANY, tier=TEXT, waits_for={"type": "object"},
    condition=ANY, for_each=ANY, items=ANY, children=ANY, attempts=several({"type": "object"}), timing=ANY,
    input=shape(value={"type": "object"}, fault=MAYBE, contract=TEXT, errors=ANY, edited=BOOL),
    output=shape(value={"type": "object"}, fault=MAYBE, contract=TEXT, errors=ANY), fallback={"type": "object"},
    model_used=ANY, tokens=ANY, cost=ANY, notes={"type": "object"}, silo_updates={"type": "array"},
    rounds={"type": "array"}, prompt=ANY, prompt_fault=ANY, error=ANY,
)  # fmt: skip
SERVICE = {"type": "object", "required": ["url", "embedded", "state", "error"]}
MADE = shape(
    schema_version={"const": 1}, project=TEXT, files=several(TEXT), changed={"type": "array"}, next=several(TEXT)
)
SESSION = shape(
    schema_version={"const": 1}, session_id=TEXT, title=TEXT, created_at=TEXT, updated_at=TEXT, messages=NUMBER,
    goals={"type": "object"}, tokens=shape(prompt_tokens=NUMBER, completion_tokens=NUMBER),
)  # fmt: skip
LEADER = shape(holder=TEXT, who=TEXT, since=TEXT, last_pass=TEXT)
RUN_KEYS = {
    "due_at": TEXT,
    "cause": TEXT,
    "state": TEXT,
    "reason": ANY,
    "goals": several(TEXT),
    "outcomes": {"type": "object"},
}
SCHEDULE_KEYS = {
    **dict.fromkeys(("key", "state", "sentence", "timezone", "dispatch_type", "target", "catch_up", "overlap"), TEXT),
    **dict.fromkeys(("cron", "interval_seconds", "expand_from", "paused_at", "paused_by"), ANY),
    "jitter_seconds": NUMBER,
    "next": {"type": "array"},
    "late": {"const": None},
    "runs": {"type": "array"},
}
BEAT = shape(leader=ANY, schedules=NUMBER, firing=NUMBER, late={"type": "array"}, faults={"type": "array"})
SCHEMAS = {
    "run line": GOAL,
    "submit line": shape(schema_version={"const": 1}, goal_id=TEXT, name=TEXT, created=BOOL),
    "show {goal}": GOAL,
    "explain {goal}": EXPLAINED,
    "explain {goal} second": EXPLAINED_STAGE,
    "list": shape(schema_version={"const": 1}, goals=several({"type": "object", "required": ["goal_id", "status"]})),
    "events {goal} --after 5": shape(
        schema_version={"const": 1},
        goal_id=TEXT,
        seq={"const": 6},
        at=TEXT,
        kind={"const": "goal_completed"},
        stage={"type": "null"},
        item={"type": "null"},
        detail={"type": "object"},
    ),
    "cancel {goal}": shape(
        schema_version={"const": 1}, goals=several(shape(goal_id=TEXT, cancelled={"const": False}, status=TEXT))
    ),
    "rerun {goal} --from second": shape(
        schema_version={"const": 1},
        goal_id=TEXT,
        rerun_of=TEXT,
        runs=several(shape(stage=TEXT, reason=TEXT)),
        reuses=several(shape(stage=TEXT, reason=TEXT)),
    ),
    "session new birds": SESSION,
    "session list": shape(schema_version={"const": 1}, sessions=several({"type": "object", "required": ["title"]})),
    "session search birds": shape(
        schema_version={"const": 1},
        hits=several(
            shape(
                session_id=TEXT, title=TEXT, seq=ANY, role=MAYBE, at=TEXT, goal_id=MAYBE, snippet={"const": "**birds**"}
            )
        ),
    ),
    "dead-letter list": shape(
        schema_version={"const": 1},
        total={"const": 0},
        letters={"type": "array"},
        malformed={"type": "array"},
        malformed_total={"const": 0},
    ),
    "prune --dry-run": {"type": "object", "required": ["schema_version", "dry_run", "goals", "dead_letters", "specs"]},
    "queues": shape(
        schema_version={"const": 1},
        queues=several(
            shape(
                name=TEXT,
                waiting=NUMBER,
                on_broker=ANY,
                later=NUMBER,
                running=NUMBER,
                oldest_s=ANY,
                nodes=several(TEXT),
                slots=NUMBER,
                per_minute=NUMBER,
                served=BOOL,
            )
        ),
    ),
    "schedule list": shape(schema_version={"const": 1}, beat=BEAT, schedules=several(shape(**SCHEDULE_KEYS))),
    "schedule show regular": shape(schema_version={"const": 1}, **SCHEDULE_KEYS),
    "schedule next 2": shape(schema_version={"const": 1}, next=several(shape(due_at=TEXT, key=TEXT))),
    "schedule pause regular": shape(schema_version={"const": 1}, key=TEXT, paused=BOOL),
    "schedule resume regular": shape(schema_version={"const": 1}, key=TEXT, resumed=BOOL),
    "schedule trigger regular": shape(schema_version={"const": 1}, **RUN_KEYS | {"key": TEXT}),
    "schedule backfill regular --from 2026-01-01 --to 2026-01-03": shape(
        schema_version={"const": 1}, key=TEXT, due=several(TEXT), passed_over={"const": 0}, runs={"type": "array"}
    ),
    "cache list": shape(schema_version={"const": 1}, answers={"type": "array"}),
    "cache clear": shape(schema_version={"const": 1}, cleared={"const": 0}),
    "costs": shape(schema_version={"const": 1}, by={"const": "worker"}, rows={"type": "array"}, total=ANY),
    "limits": shape(schema_version={"const": 1}, limits={"type": "array"}),
    "reload": shape(
        schema_version={"const": 1},
        nodes=several(shape(node=TEXT, outcome={"const": "read"}, change={"type": "object"}, error=ANY)),
    ),
    "status": shape(
        schema_version={"const": 1},
        ready={"const": True},
        project=TEXT,
        data_dir=TEXT,
        database=SERVICE,
        broker=SERVICE,
        open_goals=NUMBER,
        nodes=several({"type": "object", "required": ["hostname", "queues"]}),
        sweeper=LEADER,
        beat=BEAT,
        unserved={"type": "array"},
    ),
    "sweep --once": shape(schema_version={"const": 1}, led={"const": False}, leader=LEADER),
    "init {new}": MADE,
    "new worker fresh": MADE,
    "new pipeline fresh": MADE,
    "validate": shape(schema_version={"const": 1}, valid={"const": True}, files=NUMBER, problems={"type": "array"}),
    "plan line": shape(
        schema_version={"const": 1},
        pipeline=TEXT,
        description=TEXT,
        file=TEXT,
        levels=NUMBER,
        queues=several(TEXT),
        stages=several({"type": "object", "required": ["name", "level", "worker", "queue", "timeout_s", "reads"]}),
        segments=several(shape(after={"type": "array"}, shape=TEXT, runs={"type": "array"}, join=MAYBE)),
        findings={"type": "array"},
    ),
    "graph line --goal {goal}": shape(
        schema_version={"const": 1},
        pipeline=TEXT,
        format={"const": "tree"},
        output=MAYBE,
        title=TEXT,
        stages=several(shape(stage=TEXT, label=TEXT, level=NUMBER, status={"const": "completed"})),
        edges=several(several(TEXT)),
        drawing=TEXT,
    ),
    "try count -i n=1": shape(
        schema_version={"const": 1},
        worker=TEXT,
        kind=TEXT,
        tier=TEXT,
        input=ANY,
        prompt=ANY,
        turns={"type": "array"},
        answer=ANY,
        output=ANY,
        model_used=ANY,
        token_usage=ANY,
        cost_usd=ANY,
        notes={"type": "object"},
        silo_updates={"type": "array"},
        took_ms=NUMBER,
        error=ANY,
    ),
    "doctor": shape(
        schema_version={"const": 1},
        healthy=BOOL,
        took_ms=NUMBER,
        checks=several(shape(name=TEXT, status={"enum": ["ok", "warn", "fail"]}, message=TEXT, fix=MAYBE)),
    ),
    "explain-error LQ110": shape(schema_version={"const": 1}, id=TEXT, what=TEXT, cause=TEXT, example=ANY, next=TEXT),
    "schema worker": {"type": "object", "required": ["$schema", "properties"]},
    "db current": shape(schema_version={"const": 1}, revision=TEXT, head=TEXT, is_current={"const": True}),
    "db upgrade": shape(schema_version={"const": 1}, before=TEXT, revision=TEXT, changed=BOOL),
    "completion bash": shape(schema_version={"const": 1}, shell=TEXT, setup=TEXT, script=TEXT),
}
SERVERS = {"dev", "worker", "fake-llm"}  # they say what they have to say in their own tests
STEERING = {"pause", "resume"}  # of a goal that runs, in tests of their own


@pytest.fixture
def shop(project):
    """A project with a worker and a pipeline."""
    project.worker("count", 'return {"output": {"n": payload.get("n", 0) + 1}}')
    project.pipeline(
        "line", "- {name: first, worker_type: count}\n- {name: second, worker_type: count, depends_on: [first]}"
    )
    project.write(
        "schedules/daily.yaml",
        """
        name: daily
        schedules:
          - {name: regular, dispatch_type: task, every: day at 06:00, task: {worker_type: count}}
        """,
    )
    return project


def test_every_command_s_json_has_its_shape(shop, loomq, start_node):
    start_node("-c", "1")
    assert {words.split()[0] for words in SCHEMAS} == COMMANDS.keys() - SERVERS - STEERING
    places = {"new": str(shop.folder / "fresh_project"), "goal": ""}
    for words, schema in SCHEMAS.items():
        given = [*shlex.split(words.format(**places)), "--json"]
        found = json.loads(doctor_of(loomq) if words == "doctor" else loomq(*given)[0])
        jsonschema_rs.Draft202012Validator(schema).validate(found)
        places["goal"] = places["goal"] or found.get("goal_id", "")


def doctor_of(loomq) -> str:
    """Run the doctor, whatever it thinks of the packages of this machine."""
    process = loomq.start("doctor", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode in {0, 3}, err
    return out


def checks(loomq) -> dict[str, dict[str, Any]]:
    found = json.loads(doctor_of(loomq))
    print(f"doctor: {found['took_ms']} ms")  # noqa: T201  (a measurement, for whoever looks)
    assert found["took_ms"] < 6000  # its own bound is 2 s, on a machine that does nothing else
    return {one["name"]: one for one in found["checks"]}


def test_the_doctor_sees_services_schema_clock_and_the_queues_that_nobody_serves(shop, loomq, start_node):
    shop.worker("other")
    found = checks(loomq)
    assert {found[name]["status"] for name in ("postgres", "schema", "clock", "broker", "files")} == {"ok"}
    assert found["nodes"]["fix"] == "loomq worker"
    start_node("-c", "1", "-Q", "count.local")
    found = checks(loomq)
    assert found["nodes"]["fix"] == "loomq worker -Q other.local"
    assert found["nodes"]["message"] == "1 live with 1 slots; none serves other.local"


def test_the_doctor_sends_an_empty_database_to_be_migrated(shop, loomq, database_url):
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE")
        admin.execute("CREATE SCHEMA public")
    found = checks(loomq)
    assert (found["schema"]["status"], found["schema"]["fix"]) == ("fail", "loomq db upgrade")
    loomq("db", "upgrade")
    assert checks(loomq)["schema"]["status"] == "ok"


def test_a_goal_s_graph_is_of_what_it_runs_and_has_its_states(shop, loom, loomq, start_node):
    start_node("-c", "1")
    goal_id = json.loads(loomq("run", "line", "--json")[0])["goal_id"]
    shop.pipeline("line", "- {name: only, worker_type: count}")
    out, _ = loomq("graph", "line", "--format", "svg", "--goal", goal_id[:20])
    root = ET.fromstring(out)
    assert [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")][1:] == [
        "first: count.local, completed",
        "second: count.local, completed",
    ]
    assert out.count(COLORS["completed"][0]) == 2
    other = json.loads(loomq("run", "count", "--json")[0])["goal_id"]
    assert "runs the worker count" in loomq("graph", "line", "--goal", other, code=2)[1]


def test_a_node_may_serve_all_queues_of_a_tier(shop, loom, loomq):
    shop.write(
        "workers/big.yaml",
        "name: big\nworker_kind: processor\nprocessing_backend: mine.count.Backend\ndefault_tier: frontier\n",
    )
    assert "served from tier standard" in loomq("worker", "--tier", "standard", code=2)[1]
    process = loomq.start("worker", "--tier", "frontier", "-c", "1")
    nodes = wait_until(lambda: inspect.live_nodes(loom), "the node", timeout_s=60)
    process.terminate()
    loomq.finish(process)
    assert nodes[0].queues == ("big.frontier",)


@contextmanager
def running(line: list[str], **options: Any):
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_every_scaffold_runs_as_its_next_commands_say(shared_dir, tmp_path):
    """With private servers, which the three projects share, so that Postgres makes its data once."""
    program = [sys.executable, "-m", "loomq.cli.main"]
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LOOMQ_", "PYTHONDONTWRITE", "OPENAI_", "ANTHROPIC_", "OLLAMA_"))
    } | {"LOOMQ_DATA": str(shared_dir / "scaffold"), "LOOMQ_EMBEDDED_LINGER_SECONDS": "5"}

    def run(folder: Path, *words: str) -> str:
        done = subprocess.run(
            [*program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    results = {}
    for template in ("minimal", "etl", "llm"):
        made = json.loads(run(tmp_path, "init", f"my-{template}", "-t", template, "--json"))
        folder = Path(made["project"])
        lines = [shlex.split(line, comments=True) for line in made["next"] if line.startswith("loomq ")]
        fake = next((line[1:] for line in lines if line[1] == "fake-llm"), None)
        if fake:
            with running([*program, *fake, "--port", "0", "--json"], cwd=folder, stdout=subprocess.PIPE) as server:
                told = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")
                environment |= told["environment"]
                results[template] = [run(folder, *line[1:], "--json") for line in lines if line[1] == "run"]
            continue
        for line in lines:
            out = run(folder, *line[1:], "--json")
            if line[1] == "run":
                results[template] = [out]
    result = {template: json.loads(out[0])["result"] for template, out in results.items()}
    assert (result["minimal"]["words"], result["minimal"]["longest"]) == (5, "somewhere")
    assert (result["etl"]["total"], result["etl"]["rejected"]) == (72.0, 1)
    assert result["etl"]["by_country"] == {"DE": 39.5, "FR": 32.5}
    assert (result["llm"]["label"], result["llm"]["urgent"]) == ("billing", False)


def flower_command() -> list[str]:
    """Read what `make flower` starts, so that this is what is tested."""
    recipe = re.search(r"^flower:.*\n((?:\t.*\n)+)", (Path(__file__).parents[2] / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    words = shlex.split(recipe[1].replace("\\\n", " "))
    at = next(index for index, word in enumerate(words) if word.endswith("/celery"))
    return [sys.executable, "-m", "celery", *words[at + 1 :]]


def ask(port: int, path: str, password: str | None = None, *, post: bool = False) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"" if post else None)
    if password:
        request.add_header("Authorization", f"Basic {base64.b64encode(f'loomq:{password}'.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def test_flower_needs_its_password_changes_nothing_and_sees_names_and_ids_only(shop, loomq, start_node):
    shop.settings_given["straight_on"] = False  # a message, and so a line in Flower, for each stage
    start_node("-c", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [word.replace("$(FLOWER_PORT)", str(port)) for word in flower_command()]
    environment = {**shop.environment, "FLOWER_BASIC_AUTH": "loomq:open sesame"}
    with (
        (shop.folder / "flower.log").open("wb") as log,
        running(line, cwd=shop.folder, env=environment, stdout=log, stderr=log),
    ):
        wait_until(lambda: ask(port, "/healthcheck")[0] == 200, "Flower", timeout_s=60)
        assert {ask(port, path)[0] for path in ("/", "/tasks", "/api/tasks", "/api/workers")} == {401}
        assert ask(port, "/api/tasks", "wrong")[0] == 401
        wait_until(lambda: "count.local" in ask(port, "/api/workers?refresh=1", "open sesame")[1], "the node")
        goal = json.loads(loomq("run", "line", "-i", "hidden=treasure", "--json")[0])["goal_id"]

        def ended() -> dict[str, Any] | None:
            tasks = json.loads(ask(port, "/api/tasks", "open sesame")[1] or "{}")
            done = [task for task in tasks.values() if task["state"] == "SUCCESS"]
            return tasks if len(done) == 2 else None

        tasks = wait_until(ended, "both tasks")
        assert {task["name"] for task in tasks.values()} == {"loomq.worker.count"}
        for task in tasks.values():
            assert re.fullmatch(rf"\(?'{goal}', '(first|second)', -1\)?", task["args"].strip("()").strip()), task[
                "args"
            ]
            assert task["kwargs"] == "{}"
        assert "treasure" not in json.dumps(tasks)
        # Read-only: nothing that changes a worker or a task is served.
        for path in (f"/api/task/revoke/{goal}:first", "/api/task/async-apply/loomq.worker.count"):
            assert ask(port, path, "open sesame", post=True)[0] == 403, path
