"""The checks over a whole project's pipelines: what is wrong is found, and what is right is left alone."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from strategies import pipeline_files

from loomq.catalog import load_catalog
from loomq.pipelines.neighbours import Neighbours
from loomq.pipelines.shapes import Impossible
from loomq.pipelines.spec import PipelineSpec
from loomq.settings import Settings
from loomq.workers.spec import Schemas

LINE = {"type": "object", "additionalProperties": False, "properties": {"content": {"type": "string"}}}
WORKERS = {
    "read": {
        "input_schema": {"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}}},
        "output_schema": {
            "$defs": {"line": LINE},
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
                "size": {"type": "number"},
            },
        },
    },
    "count": {
        "input_schema": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"text": {"type": "string"}, "number": {"type": "integer"}},
        },
        "output_schema": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"count": {"type": "integer"}},
            "required": ["count"],
        },
    },
    "estimate": {
        "output_schema": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"guess": {"type": "number"}},
        }
    },
}
READ = {"name": "first", "worker_type": "read", "input_mapping": {"path": "goal.instruction"}}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check pipelines, given as name -> stages or name -> what the file says; give each problem's id and words."""
    monkeypatch.chdir(tmp_path)
    for folder in ("workers", "pipelines"):
        (tmp_path / folder).mkdir()
    for name, schemas in WORKERS.items():
        said = {"name": name, "worker_kind": "processor", "processing_backend": "loomq.contrib.demo.X", **schemas}
        (tmp_path / "workers" / f"{name}.yaml").write_text(json.dumps(said))

    def problems(**pipelines):
        for name, said in pipelines.items():
            whole = {"name": name, **(said if isinstance(said, dict) else {"pipeline_stages": said})}
            (tmp_path / "pipelines" / f"{name}.yaml").write_text(json.dumps(whole))
        return [(one.id, one.message) for one in load_catalog(Settings(project=tmp_path))[1]]

    return problems


def stage(name, worker="count", **said):
    return {"name": name, "worker_type": worker, **said}


def test_what_is_right_is_left_alone(check):
    inner = {
        "input_schema": LINE,
        "pipeline_stages": [stage("a", input_mapping={"text": "goal.context.content"})],
        "output": {"total": "a.output.count", "by": {"who": "'me'", "size": "goal.context.content | default(3)"}},
    }
    outer = [
        READ,
        stage(
            "each",
            for_each="first.output.lines",
            condition="item.content exists and index < 5",
            input_mapping={"text": "item.content", "number": "index"},
            fallback={"value": {"count": 0}},
        ),
        stage("sum", input_mapping={"number": "each.output.items[0].count"}, condition="each.output.items[0] == null"),
        stage("either", fallback={"worker_type": "estimate"}),
        stage("more", "estimate", input_mapping={"a": "either.output.count?", "b": "either.output.guess?"}),
        {"name": "nested", "pipeline": "inner", "input_mapping": {"content": "goal.instruction"}},
        {"name": "again", "pipeline": "inner", "for_each": "first.output.lines", "input_mapping": {"content": "'a'"}},
        stage("last", input_mapping={"number": "nested.output.total", "text": "nested.output.by.who"}),
        stage("late", input_mapping={"number": "again.output.items[1].total"}, condition="first.output.size > 1"),
    ]
    output = {"count": "late.output.count | default(0)", "each": "each.output.items"}
    assert check(inner=inner, outer={"pipeline_stages": outer, "output": output}) == []


@pytest.mark.parametrize(
    ("stages", "id_", "words"),
    [
        ([stage("a", for_each="first.output.lines", input_mapping={"text": "item.contents"})], "LQ204", "contents"),
        ([stage("a", for_each="first.output.lines", input_mapping={"text": "item"})], "LQ205", "item is object"),
        ([stage("a", for_each="first.output.lines", input_mapping={"text": "index"})], "LQ205", "index is integer"),
        ([stage("a", for_each="first.output.lines", condition="item.n == 1")], "LQ204", "the items of"),
        ([stage("a", for_each="first.output.size")], "LQ215", "is number"),
        ([stage("a", condition="first.output.size == big")], "LQ214", "'big' is string"),
        ([stage("a", condition="first.output.lines > 3")], "LQ214", "never holds"),
        ([stage("a", condition="goal.instruction < true")], "LQ214", "true is boolean"),
        ([stage("a", condition="first.output.size contains 3")], "LQ214", "never holds"),
        ([stage("a", condition='first.output.size in ["1"]')], "LQ214", "never holds"),
        ([stage("b", for_each="goal.context.list"), stage("a", condition="b.output.items.0 == None")], "LQ214", "null"),
        ([stage("a", condition="goal.instruction == first.output.size")], "LQ214", "is text here"),
        ([stage("a", condition="b.output exists"), stage("b", condition="a.output exists")], "LQ208", "a -> b -> a"),
        ([stage("a", depends_on=[], condition="first.output.size > 1")], "LQ210", 'reads "first"'),
        ([stage("a", depends_on=[], for_each="first.output.lines?")], "LQ210", 'reads "first"'),
        ([stage("item"), stage("a", for_each="first.output.lines")], "LQ115", '"item"'),
        ([stage("a", fallback={"value": {"cuont": 0}})], "LQ218", "cuont"),
        ([stage("a", "estimate", fallback={"worker_type": "count"}, input_mapping={"a": 1})], "LQ212", "fallback"),
        ([{"name": "a", "pipeline": "outre"}], "LQ216", "outre"),
        ([{"name": "a", "pipeline": "outer"}], "LQ217", "outer -> outer"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_what_is_wrong_is_found(check, stages, id_, words):
    found = check(outer=[READ, *stages])
    assert [id_ for id_, _ in found].count(id_) == len(found) >= 1
    assert words in " ".join(message for _, message in found)


def test_stages_may_be_called_item_and_index_where_there_is_no_for_each(check):
    stages = [stage("item"), stage("index", input_mapping={"number": "item.output.count"})]
    assert check(outer=[*stages, stage("a", condition="index.output.count > 1 and item.output.count < 1")]) == []


def test_the_result_of_a_pipeline_without_an_output_is_that_of_all_its_stages(check):
    inner = [READ, stage("c")]
    said = {"number": "a.output.c.count", "text": "a.output.first.lines[0].content"}
    assert check(inner=inner, outer=[{"name": "a", "pipeline": "inner"}, stage("b", input_mapping=said)]) == []
    found = check(outer=[{"name": "a", "pipeline": "inner"}, stage("b", input_mapping={"number": "a.output.count"})])
    assert found == [("LQ204", 'the result of a (pipeline inner) cannot have this: at a.output there is no "count"')]


def test_pipelines_may_stand_inside_each_other_up_to_a_limit(check):
    chain = {f"p{n}": [{"name": "a", "pipeline": f"p{n + 1}"}] for n in range(1, 8)} | {"p8": [stage("a")]}
    assert check(**chain) == []
    found = check(p0=[{"name": "a", "pipeline": "p1"}])
    assert [id_ for id_, _ in found] == ["LQ217"]
    assert "9 pipelines stand inside each other, at most 8 may: p0 -> p1" in found[0][1]


def test_the_result_of_a_pipeline_too_deep_to_follow_is_unknown():
    chain = {f"q{n}": [{"name": "a", "pipeline": f"q{n + 1}"}] for n in range(400)}
    specs = {name: PipelineSpec.model_validate({"name": name, "pipeline_stages": said}) for name, said in chain.items()}
    shape = Neighbours((), specs, lambda *_: Schemas(None, None)).result_of("q0")
    assert shape.child("a").child("a").types() == {"object"}
    assert isinstance(shape.child("a").child("b"), Impossible)


def test_a_long_chain_of_pipelines_and_wide_ones_are_checked_in_time(check):
    wide = [{"name": f"s{n}", "pipeline": "q1"} for n in range(6)]
    chain = {f"q{n}": [{**one, "pipeline": f"q{n + 1}"} for one in wide] for n in range(1, 60)}
    found = check(**chain, q60=[stage("a")])
    assert {id_ for id_, _ in found} == {"LQ217"}
    assert len(found) == 52 * 6


def test_pipelines_in_a_circle_are_told_in_each_file_of_the_circle_and_in_no_other(check):
    found = check(
        a=[{"name": "x", "pipeline": "b"}],
        b=[{"name": "x", "pipeline": "c"}],
        c=[{"name": "x", "pipeline": "b"}],
    )
    assert found == [
        ("LQ217", "a pipeline contains itself: b -> c -> b"),
        ("LQ217", "a pipeline contains itself: c -> b -> c"),
    ]


def test_a_pipeline_whose_file_is_broken_is_not_called_unknown(check, tmp_path):
    (tmp_path / "pipelines" / "torn.yaml").write_text("name: [")
    (tmp_path / "pipelines" / "wrong.yaml").write_text("name: wrong\npipeline_stages: []")
    outer = [{"name": name, "pipeline": name, "input_mapping": {"x": "goal.instruction"}} for name in ("torn", "wrong")]
    found = check(outer=[*outer, stage("b", input_mapping={"number": "torn.output.a.b", "text": "wrong.output.c"})])
    assert sorted(id_ for id_, _ in found) == ["LQ102", "LQ114"]


def test_the_result_warns_of_what_a_skipped_stage_leaves_out(check):
    stages = [
        stage("maybe", condition="goal.context.x exists"),
        stage("needing", input_mapping={"number": "maybe.output.count"}),
        stage("not_needing", input_mapping={"number": "maybe.output.count?"}),
        stage("items", for_each="goal.context.list", condition="item exists"),
    ]
    output = {"a": "needing.output.count", "b": "not_needing.output.count", "c": "items.output.items"}
    found = check(outer={"pipeline_stages": stages, "output": {**output, "d": {"e": "maybe.output.count?"}}})
    assert found == [("LQ219", '"needing" may be skipped, and then the result has no "a"')]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pipeline_files())
def test_any_pipeline_is_checked_without_an_accident(check, said):
    assert isinstance(check(**{said["name"]: said}), list)
