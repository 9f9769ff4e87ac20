"""The graph of a pipeline: levels, ancestors, cycles, transitive reduction."""

from itertools import pairwise

import pytest
from hypothesis import given
from strategies import dags

from loomq.errors import ConfigError
from loomq.pipelines.graph import StageGraph, dependencies, find_cycle, graph_of
from loomq.pipelines.spec import PipelineSpec, StageSpec

DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


def reachable(parents, name):
    found, stack = set(), list(parents[name])
    while stack:
        one = stack.pop()
        if one not in found:
            found.add(one)
            stack += parents[one]
    return found


def test_a_diamond():
    graph = StageGraph.build(DIAMOND)
    assert graph.levels == (("a",), ("b", "c"), ("d",))
    assert graph.children == {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ()}
    assert graph.leaves == ("d",)
    assert graph.ancestors("d") == {"a", "b", "c"}
    assert graph.reduced() == graph


def test_an_edge_that_says_nothing_new_is_reduced_away():
    graph = StageGraph.build({"a": (), "b": ("a",), "c": ("a", "b")})
    assert graph.reduced().parents == {"a": (), "b": ("a",), "c": ("b",)}


@given(dags())
def test_levels_hold_every_stage_once_and_respect_every_edge(parents):
    graph = StageGraph.build(parents)
    level = {name: at for at, names in enumerate(graph.levels) for name in names}
    assert sorted(name for names in graph.levels for name in names) == sorted(parents)
    for name, above in parents.items():
        assert level[name] == max((level[parent] + 1 for parent in above), default=0)


@given(dags())
def test_the_reduction_keeps_reachability_and_no_edge_too_many(parents):
    reduced = StageGraph.build(parents).reduced()
    for name in parents:
        assert reachable(reduced.parents, name) == reachable(parents, name) == reduced.ancestors(name)
        for parent in reduced.parents[name]:
            others = {**reduced.parents, name: tuple(one for one in reduced.parents[name] if one != parent)}
            assert parent not in reachable(others, name)


@given(dags())
def test_children_mirror_parents_and_leaves_have_none(parents):
    graph = StageGraph.build(parents)
    assert {(a, b) for b in parents for a in parents[b]} == {(a, b) for a in parents for b in graph.children[a]}
    assert set(graph.leaves) == {name for name in parents if not any(name in above for above in parents.values())}


@given(dags(), dags())
def test_a_cycle_is_found_exactly_when_there_is_one(first, second):
    assert find_cycle(first) == []
    # Two DAGs over the same names, laid over each other, may have a cycle.
    names = [name for name in first if name in second]
    both = {name: [one for one in {*first[name], *second[name]} if one in names] for name in names}
    turned = {name: [child for child in names if name in both[child]] for name in names}
    for name in names[::2]:
        both[name] = [*both[name], *turned[name][:1]]
    cycle = find_cycle(both)
    circular = any(name in reachable(both, name) for name in names)
    assert bool(cycle) == circular
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(before in both[after] for before, after in pairwise(cycle))


def test_a_cycle_is_printed_in_the_order_of_the_work():
    with pytest.raises(ConfigError, match="a -> b -> c -> a"):
        StageGraph.build({"a": ["c"], "b": ["a"], "c": ["b"]})
    assert find_cycle({"a": ["a"]}) == ["a", "a"]


def test_a_parent_that_is_no_stage_is_refused():
    with pytest.raises(ConfigError, match='waits for "z"'):
        StageGraph.build({"a": ["z"]})


def test_a_chain_of_two_thousand_stages_needs_no_recursion():
    parents = {f"s{n}": (f"s{n - 1}",) if n else () for n in range(2000)}
    graph = StageGraph.build(dict(reversed(parents.items())))
    assert len(graph.levels) == 2000
    assert len(graph.ancestors("s1999")) == 1999
    assert graph.reduced().parents == graph.parents


def test_dependencies_come_from_the_mapping_unless_they_are_written():
    mapping = {"x": "b.output.v", "y": {"z": "a.output?"}, "g": "goal.context.a"}
    stage = StageSpec(name="s", worker_type="w", input_mapping=mapping)
    assert dependencies(stage) == ("b", "a")
    assert dependencies(stage.model_copy(update={"depends_on": ("a", "a")})) == ("a",)
    assert dependencies(stage.model_copy(update={"depends_on": ()})) == ()


def test_a_condition_and_a_for_each_make_a_stage_wait_and_items_do_not():
    said = {
        "input_mapping": {"x": "item.url", "y": "c.output.v?"},
        "condition": "b.output.n > index and a.output exists",
        "for_each": "d.output.urls",
    }
    stage = StageSpec(name="s", worker_type="w", **said)
    assert dependencies(stage) == ("c", "b", "a", "d")
    assert stage.needs == ("d",)
    assert dependencies(stage.model_copy(update={"depends_on": ("d",)})) == ("d",)


def test_forward_references_are_fine():
    stages = [
        {"name": "late", "worker_type": "w", "input_mapping": {"x": "early.output"}},
        {"name": "early", "worker_type": "w"},
    ]
    graph = graph_of(PipelineSpec.model_validate({"name": "p", "pipeline_stages": stages}))
    assert graph.levels == (("early",), ("late",))
    assert graph.names == ("late", "early")
