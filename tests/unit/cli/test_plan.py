"""``loomq plan`` shows what the runtime will publish, from files alone."""

from __future__ import annotations

import json

from hypothesis import given, settings
from strategies import dags

from loomq.pipelines.graph import StageGraph
from loomq.services.plans import published

ECHO = "name: echo\nworker_kind: processor\nprocessing_backend: mine_cli.echo.Backend\ntimeout_seconds: 30\n"


def test_a_diamond_is_published_as_one_stage_and_one_chord(program):
    found = json.loads(program("plan", "diamond", "--json")[0])
    assert found["segments"] == [
        {"after": [], "shape": "single", "runs": [["top"]], "join": None},
        {"after": ["top"], "shape": "chord", "runs": [["left"], ["right"]], "join": "bottom"},
    ]
    assert (found["levels"], found["queues"], found["findings"]) == (3, ["echo.frontier", "echo.local"], [])


def test_a_stage_is_shown_with_its_own_limits_before_the_worker_s(program):
    stages = {stage["name"]: stage for stage in json.loads(program("plan", "diamond", "--json")[0])["stages"]}
    shown = {name: (one["timeout_s"], one["max_retries"], one["priority"]) for name, one in stages.items()}
    assert shown == {"top": (30, 2, None), "left": (5, 2, "high"), "right": (30, 7, None), "bottom": (30, 2, None)}
    assert stages["bottom"]["waits_for"] == ["left", "right"]
    assert stages["bottom"]["reads"] == ["left.output.text", "right.output.text"]
    assert stages["right"]["queue"] == "echo.frontier"


def test_the_text_has_everything_too(program):
    out, _ = program("plan", "diamond")
    assert "after top  chord   left | right => bottom" in out
    assert "4 stages on 3 levels" in out
    assert "validate finds nothing wrong" in out


def test_limits_are_shown_and_what_is_under_one_is_sent_by_itself(program):
    program.write("workers/echo.yaml", ECHO + "max_concurrent: 3\n")
    program.write("deploy/router_rules.yaml", "rate_limits: {frontier: {rate: 5/s, tokens_per_minute: 900}}\n")
    found = json.loads(program("plan", "diamond", "--json")[0])
    limits = {stage["name"]: stage["limits"] for stage in found["stages"]}
    assert limits["top"] == ["3 at once of worker echo"]
    assert limits["right"] == [
        "the rate of tier frontier (5/s)",
        "the tokens of tier frontier (900 a minute)",
        "3 at once of worker echo",
    ]
    assert {segment["shape"] for segment in found["segments"]} == {"single"}
    assert "limit: the rate of tier frontier (5/s)" in program("plan", "diamond")[0]


SPECIAL = """
name: special
pipeline_stages:
  - name: each
    worker_type: echo
    for_each: goal.context.texts
    max_parallel: 3
    input_mapping: {text: item}
    fallback: {worker_type: echo, tier: frontier}
  - name: last
    worker_type: echo
    condition: |
      each.output.items contains "a" and
      goal.context.language != english
    input_mapping: {text: each.output.items}
    fallback: {value: {text: ""}}
"""


def test_what_is_special_about_a_stage_is_noted_in_plan_and_graph(program):
    program.write("pipelines/special.yaml", SPECIAL)
    notes = {
        "each": ["each of goal.context.texts, 3 at once", "else echo"],
        "last": ['if each.output.items contains "a" and goal.context.language != english', "else a value"],
    }
    found = json.loads(program("plan", "special", "--json")[0])
    assert {stage["name"]: stage["notes"] for stage in found["stages"]} == notes
    assert found["stages"][1]["waits_for"] == ["each"]
    assert "  each  item; each of goal.context.texts, 3 at once; else echo" in program("plan", "special")[0]
    assert program("graph", "special")[0].splitlines()[1:] == [
        "└─ each  (echo.local, each of goal.context.texts, 3 at once, else echo)",
        '   └─ last  (echo.local, if each.output.items contains "a" and g…, else a value)',
    ]
    assert "#34;a#34;" in program("graph", "special", "-f", "mermaid")[0]
    assert '\\"a\\"' in program("graph", "special", "-f", "dot")[0]


def test_a_stage_that_runs_a_pipeline_is_planned_on_the_queue_of_its_first_worker(program):
    program.write("pipelines/outer.yaml", "name: outer\npipeline_stages: [{name: a, pipeline: diamond}]\n")
    found = json.loads(program("plan", "outer", "--json")[0])
    assert found["segments"] == [{"after": [], "shape": "single", "runs": [["a"]], "join": None}]
    assert (found["queues"], found["findings"]) == (["echo.local"], [])


def test_a_rule_of_the_router_is_followed(program):
    program.write("deploy/router_rules.yaml", "tier_overrides: {echo: standard}\n")
    assert json.loads(program("plan", "diamond", "--json")[0])["queues"] == ["echo.standard"]


def test_what_other_files_have_wrong_is_no_concern(program):
    program.write("pipelines/other.yaml", "name: other\npipeline_stages: []\n")
    program("plan", "diamond")
    _, err = program("plan", "other", code=2)
    assert "pipelines/other.yaml:2" in err


def test_a_broken_worker_of_the_pipeline_is_told(program):
    program.write("workers/echo.yaml", "name: echo\nworker_kind: processor\n")
    _, err = program("plan", "diamond", code=2)
    assert "a worker of pipeline diamond has errors: workers/echo.yaml" in err
    assert "loomq validate" in err


def test_an_unknown_pipeline_is_answered_with_the_nearest(program):
    assert 'did you mean "diamond"?' in program("plan", "diamnod", code=2)[1]
    assert "shop has diamond" in program("plan", "zzz", code=2)[1]


@settings(max_examples=60, deadline=None)
@given(dags())
def test_whatever_the_shape_every_stage_is_published_once_and_after_its_parents(parents):
    graph = StageGraph.build(parents).reduced()
    begun: set[str] = set()
    for segment in published(graph):
        for run in segment.runs:
            assert set(segment.after) == set(graph.parents[run[0]]) <= begun
            begun.update(run)
        begun.update([segment.join] if segment.join else [])
    told = [name for one in published(graph) for run in one.runs for name in run]
    told += [one.join for one in published(graph) if one.join]
    assert sorted(told) == sorted(graph.names)
