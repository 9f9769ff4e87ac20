"""Plans: what is read out of a model's answer, and what is refused, all of it at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.errors import PipelineMappingError
from loomq.orchestrator.manifest import Frozen, Offer
from loomq.orchestrator.spec import OrchestratorSpec
from loomq.orchestrator.tasks import FROM, MOST_TASKS, PlanReader, Subtask, references, resolved

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def read(frozen, answer, *, ended=None, may_be_empty=False):
    reader = PlanReader(frozen, ended)
    return reader.read(answer, may_be_empty=may_be_empty), reader.faults


def test_a_plan_is_a_list_of_tasks_with_names_tiers_and_what_they_wait_for(frozen):
    tasks, faults = read(
        frozen,
        [
            {"worker_type": "look", "payload": {"q": "a"}},
            {"worker_type": "free", "id": "mine", "depends_on": [0, "mine_not"], "payload": {}},
        ],
    )
    assert tasks == []
    assert faults == ["task 1: depends_on: 'mine_not' is no task of this plan; name ids, or places from 0"]

    tasks, faults = read(
        frozen,
        {
            "tasks": [
                {"worker_type": "look", "payload": {"q": "a"}, "model_tier": "frontier", "rationale": "so"},
                {"worker_type": "free", "id": "mine", "depends_on": "look_1", "priority": "high"},
            ]
        },
    )
    assert faults == []
    assert tasks == [
        Subtask("look_1", "look", {"q": "a"}, "frontier", None, "so"),
        Subtask("mine", "free", {}, "standard", "high", None, ("look_1",)),
    ]
    assert [Subtask.of(task.to_json()) for task in tasks] == tasks


def test_names_go_on_counting_over_the_rounds(frozen):
    tasks, _ = read(frozen, [{"worker_type": "free"}] * 2, ended={"free_1": True, "free_3": False})
    assert [task.name for task in tasks] == ["free_4", "free_5"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("prose", "the answer is a text and not a list of tasks"),
        ({"plan": 1}, "the answer is an object and not a list of tasks"),
        ([], "the plan has no task"),
        ([{"worker_type": "look"}] * (MOST_TASKS + 1), f"the plan has {MOST_TASKS + 1:,} tasks, and may have"),
        ([7], "task 0: it is a number and not an object"),
        ([{"payload": {}}], "task 0: worker_type: it is missing; there are: boss, free, look"),
        ([{"worker_type": "lok"}], 'task 0: worker_type: no worker is called "lok"; did you mean "look"?'),
        ([{"worker_type": ["look"]}], "task 0: worker_type: no worker is called \"['look']\""),
        ([{"worker_type": "look", "payload": []}], "task 0: payload: it is a list and not an object"),
        ([{"worker_type": "look", "payload": {}}], 'task 0: payload of look: "q" is a required property'),
        ([{"worker_type": "free", "model_tier": "frontier"}], 'task 0: model_tier: "frontier" is none of standard'),
        (
            [{"worker_type": "boss", "model_tier": "local", "payload": {"instruction": "x"}}],
            "task 0: model_tier: this kind of worker takes none",
        ),
        ([{"worker_type": "free", "priority": "soon"}], 'task 0: priority: "soon" is none of low, normal, high'),
        ([{"worker_type": "free", "id": "A b"}], 'task 0: id: "A b" is no name'),
        ([{"worker_type": "free", "id": "goal"}], 'task 0: id: "goal" is taken'),
        ([{"worker_type": "free", "id": "a"}] * 2, 'task 1: id: "a" is another task\'s name already'),
        ([{"worker_type": "free", "depends_on": [1]}], "task 0: depends_on: '1' is no task of this plan"),
        ([{"worker_type": "free", "reason": "x"}], "task 0: reason: there is no such key"),
        (
            [{"worker_type": "free", "depends_on": [1]}, {"worker_type": "free", "depends_on": [0]}],
            "tasks wait for each other: ",
        ),
        (
            [{"worker_type": "free", "payload": {"x": {FROM: "free_2.output.a"}}}, {"worker_type": "free"}],
            'task 0: payload.x: "free_2" is neither among its depends_on nor a task of an earlier round',
        ),
        ([{"worker_type": "free", "payload": {"x": [{FROM: "free_2"}]}}], "task 0: payload.x.0: the path 'free_2'"),
        ([{"worker_type": "free", "payload": {"x": {FROM: "'a'"}}}], "task 0: payload.x: the path"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(frozen, answer, fault):
    tasks, faults = read(frozen, answer)
    assert tasks == []
    assert any(one.startswith(fault) for one in faults), faults


def test_every_fault_of_a_plan_is_said_at_once_up_to_a_number(frozen):
    _, faults = read(frozen, [{"worker_type": "nobody"}, {"worker_type": "look", "payload": {"q": 1, "x": 2}}])
    assert [fault.split(":")[0] for fault in faults] == ["task 0", "task 1", "task 1"]

    _, faults = read(frozen, [{"worker_type": "nobody"}] * 500)
    assert len(faults) == 21
    assert faults[-1] == "… and 480 more"


def test_nothing_more_to_do_is_an_answer_from_the_second_round_on(frozen):
    assert read(frozen, [], may_be_empty=True) == ([], [])


def test_what_is_not_known_yet_is_not_held_against_the_contract(frozen):
    plan = [{"worker_type": "look", "payload": {"q": {FROM: "old.output.text"}, "n": {FROM: "goal.context.n"}}}]
    assert read(frozen, plan, ended={"old": True})[1] == []
    assert read(frozen, plan, ended={"old": False})[1] == ["task 0: payload.q: task old has no result"]
    plan[0]["payload"]["n"] = "many"
    assert len(read(frozen, plan, ended={"old": True})[1]) == 1


def test_a_task_may_take_from_what_it_waits_for_indirectly(frozen):
    plan = [
        {"worker_type": "free", "id": "a"},
        {"worker_type": "free", "id": "b", "depends_on": ["a"]},
        {"worker_type": "free", "id": "c", "depends_on": ["b"], "payload": {"x": {FROM: "a.output.y | default(1)"}}},
    ]
    assert read(frozen, plan)[1] == []


def test_references_are_found_and_put_in_their_places():
    payload = {"a": {FROM: "t.output.x"}, "b": [{"c": {FROM: "goal.instruction"}}, {FROM: "t.output.y", "more": 1}]}
    assert list(references(payload)) == [(("a",), "t.output.x"), (("b", 0, "c"), "goal.instruction")]
    roots = {"t": {"output": {"x": [1]}}, "goal": {"instruction": "go"}}
    assert resolved(payload, roots) == {"a": [1], "b": [{"c": "go"}, {FROM: "t.output.y", "more": 1}]}
    with pytest.raises(PipelineMappingError, match=r't.output has no "z"'):
        resolved({FROM: "t.output.z"}, roots)
    assert Subtask("", "", payload).reads == ("t", "goal")


FREE = Frozen(spec=OrchestratorSpec(name="o"), offers=(Offer(name="free", tier="local", tiers=("local",)),))


@given(JSON | st.lists(st.fixed_dictionaries({"worker_type": st.just("free")}, optional={
    "id": JSON, "payload": JSON, "model_tier": JSON, "priority": JSON, "rationale": JSON, "depends_on": JSON,
})))  # fmt: skip
def test_whatever_a_model_answers_is_a_plan_or_a_list_of_faults(answer):
    tasks, faults = read(FREE, answer, may_be_empty=True)
    assert not (tasks and faults)
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert set(task.depends_on) <= {other.name for other in tasks}


def test_a_payload_that_is_nested_beyond_reason_is_a_fault(frozen):
    deep = {}
    for _ in range(5000):
        deep = {"x": deep}
    assert read(frozen, [{"worker_type": "free", "payload": deep}])[1] == ["task 0: payload: it is nested too deeply"]


def test_numbers_that_a_model_gives_as_ids_are_ids_and_no_places(frozen):
    plan = [{"worker_type": "free", "id": number} for number in (1, 2)]
    plan.append({"worker_type": "free", "id": 3, "depends_on": [1]})
    tasks, faults = read(frozen, plan)
    assert faults == []
    assert [(task.name, task.depends_on) for task in tasks] == [("free_1", ()), ("free_2", ()), ("free_3", ("free_1",))]
    plan[2]["depends_on"] = [0]
    assert read(frozen, plan)[1] == ["task 2: depends_on: 0 is no id of this plan"]
    plan[1]["id"] = 1
    assert "task 1: id: 1 is another task's already" in read(frozen, plan)[1]


def test_a_made_name_leaves_those_that_the_model_has_given(frozen):
    tasks, faults = read(frozen, [{"worker_type": "free"}, {"worker_type": "free", "id": "free_1"}])
    assert faults == []
    assert [task.name for task in tasks] == ["free_2", "free_1"]


def test_waiting_for_an_earlier_task_that_has_no_result_is_a_fault(frozen):
    plan = [{"worker_type": "free", "depends_on": ["old"]}]
    assert read(frozen, plan, ended={"old": False})[1] == [
        "task 0: depends_on: task old, of an earlier round, has no result"
    ]
    assert read(frozen, plan, ended={"old": True})[1] == []


def test_what_is_known_already_must_be_there(frozen):
    known = {"goal": {"context": {"a": 1}}, "old": {"output": {"x": 1}}}
    plan = [{"worker_type": "free", "payload": {"b": {FROM: "goal.context.nope"}, "c": {FROM: "old.output.y"}}}]
    reader = PlanReader(frozen, {"old": True}, known)
    assert reader.read(plan, may_be_empty=False) == []
    assert ['has no "nope"' in reader.faults[0], 'has no "y"' in reader.faults[1]] == [True, True]


def test_a_choice_among_schemas_waits_for_what_is_not_known_yet():
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    ref = {"type": "object", "properties": {"ref": {"type": "string"}}, "required": ["ref"]}
    offer = Offer(name="either", input_schema={"anyOf": [text, ref]}, tier="local", tiers=("local",))
    one = Frozen(spec=OrchestratorSpec(name="o"), offers=(offer,))
    plan = [{"worker_type": "either", "payload": {"text": {FROM: "goal.instruction"}}}]
    assert read(one, plan)[1] == []
    assert read(one, [{"worker_type": "either", "payload": {"text": 7}}])[1]


def test_a_chain_of_a_thousand_tasks_is_read_in_no_time(frozen):
    plan = [{"worker_type": "free", "id": "t0"}]
    plan += [
        {"worker_type": "free", "id": f"t{n}", "depends_on": [f"t{n - 1}"], "payload": {"x": {FROM: "t0.output.a"}}}
        for n in range(1, 1000)
    ]
    tasks, faults = read(frozen, plan)
    assert (len(tasks), faults) == (1000, [])


def test_faults_are_told_in_the_order_of_the_answer(frozen):
    plan = [{"worker_type": "free", **dict.fromkeys("zyxwv", 1)}]
    assert [fault.split(": ")[1] for fault in read(frozen, plan)[1]] == list("zyxwv")
