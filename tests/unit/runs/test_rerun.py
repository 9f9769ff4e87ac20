"""What a rerun runs and what it reuses, decided from plans alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.errors import PipelineValidationError, UnknownNameError
from loomq.pipelines.spec import PipelineSpec
from loomq.runs.rerun import changed_context, plan_rerun
from loomq.runs.snapshot import parse, snapshot_of_pipeline, snapshot_of_worker
from loomq.workers.spec import WorkerSpec


def _worker(name="echo", **more):
    return WorkerSpec.model_validate(
        {"name": name, "worker_kind": "processor", "processing_backend": "mine.echo.Backend", **more}
    )


def _plan(*stages, worker=None, **keys):
    spec = PipelineSpec.model_validate({"name": "demo", "pipeline_stages": list(stages), **keys})
    return parse(snapshot_of_pipeline("demo", {"demo": spec}, {"echo": worker or _worker()}))


def _stage(name, mapping=None, **more):
    return {"name": name, "worker_type": "echo", "input_mapping": mapping or {}, **more}


def _line(**second):
    return _plan(
        _stage("first", {"a": "goal.context.a"}),
        _stage("second", {"b": "first.output.b", "c": "goal.context.deep.c?"}, **second),
        _stage("third", {"d": "second.output.d"}),
        _stage("apart", {"i": "goal.instruction"}),
    )


DONE = dict.fromkeys(("first", "second", "third", "apart"), "done")


@pytest.mark.parametrize(
    ("states", "options", "runs"),
    [
        ({}, {}, {}),
        ({"second": "failed", "third": "cancelled"}, {}, {"second": "it has no result", "third": "it has no result"}),
        ({"second": "dead"}, {}, {"second": "it has no result", "third": "second runs again"}),
        ({"second": "skipped", "third": "skipped"}, {}, {}),
        ({}, {"start": "second"}, {"second": "asked for", "third": "second runs again"}),
        (
            {},
            {"changed": ("a",)},
            {"first": "goal.context.a has changed", "second": "first runs again", "third": "second runs again"},
        ),
        ({}, {"changed": ("deep",)}, {"second": "goal.context.deep has changed", "third": "second runs again"}),
        ({}, {"changed": ("deep.c.e",)}, {"second": "goal.context.deep.c.e has changed", "third": "second runs again"}),
        ({}, {"changed": ("deep.x", "other")}, {}),
    ],
)
def test_a_stage_runs_again_if_it_did_not_end_well_or_something_before_it_changed(states, options, runs):
    plan = _line()
    found = plan_rerun(plan, plan, {**DONE, **states}, **options)
    assert found.runs == runs
    assert found.reused == {name: state for name, state in {**DONE, **states}.items() if name not in runs}


def test_a_changed_file_runs_what_it_changes_and_what_it_adds():
    new = _line(max_retries=9)
    assert list(plan_rerun(_line(), new, DONE).runs) == ["second", "third"]
    assert plan_rerun(_line(), new, DONE).runs["second"] == "its definition has changed"
    slower = _plan(_stage("first", {"a": "goal.context.a"}), _stage("more"), worker=_worker(timeout_seconds=9))
    assert plan_rerun(_line(), slower, DONE).runs == {"first": "its definition has changed", "more": "it is new"}


def test_who_reads_the_whole_context_runs_again_whatever_has_changed_in_it():
    plan = _plan(_stage("whole", {"all": "goal.context"}), _stage("part", {"a": "goal.context.a"}))
    assert set(plan_rerun(plan, plan, dict.fromkeys(("whole", "part"), "done"), changed=("b",)).runs) == {"whole"}
    task = parse(snapshot_of_worker(_worker()))
    assert plan_rerun(task, task, {"echo": "done"}, changed=("b",)).runs == {"echo": "goal.context.b has changed"}


def test_what_a_condition_or_a_list_of_items_reads_counts_as_well():
    plan = _plan(_stage("asks", condition="goal.context.a == 1"), _stage("each", for_each="goal.context.list"))
    done = dict.fromkeys(("asks", "each"), "done")
    assert set(plan_rerun(plan, plan, done, changed=("a",)).runs) == {"asks"}
    assert set(plan_rerun(plan, plan, done, changed=("list.0",)).runs) == {"each"}


def test_an_unknown_stage_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        plan_rerun(_line(), _line(), DONE, start="secon_d")
    assert "second" in caught.value.hint


@st.composite
def _cases(draw):
    size = draw(st.integers(1, 10))
    names = [f"s{number}" for number in range(size)]
    above = {
        name: draw(st.lists(st.sampled_from(names[:at]), max_size=3, unique=True)) if at else []
        for at, name in enumerate(names)
    }
    states = {name: draw(st.sampled_from(["done", "done", "skipped", "failed", "cancelled"])) for name in names}
    start = draw(st.none() | st.sampled_from(names))
    return above, states, start


@given(_cases())
def test_a_stage_is_reused_only_if_all_its_ancestors_are(case):
    above, states, start = case
    plan = _plan(*(_stage(name, depends_on=parents) for name, parents in above.items()))
    found = plan_rerun(plan, plan, states, start=start)
    assert set(found.runs) | set(found.reused) == set(above)
    assert not set(found.runs) & set(found.reused)
    for name in above:
        stands = name != start and states[name] in {"done", "skipped"}
        assert (name in found.reused) == (stands and all(parent in found.reused for parent in above[name]))


def test_a_changed_context_leaves_the_old_one_alone_and_reaches_into_lists():
    old = {"a": {"b": 1, "c": 2}, "list": [{"x": 1}, {"x": 2}], "none": None}
    new = changed_context(old, {"a.b": 9, "list.1.x": 8, "new.deep": 7, "none.z": 6})
    assert new == {
        "a": {"b": 9, "c": 2},
        "list": [{"x": 1}, {"x": 8}],
        "none": {"z": 6},
        "new": {"deep": 7},
    }
    assert old == {"a": {"b": 1, "c": 2}, "list": [{"x": 1}, {"x": 2}], "none": None}
    for key in ("list.2", "list.x", "a.b.c"):
        with pytest.raises(PipelineValidationError, match="has no place in goal"):
            changed_context(old, {key: 1})
