"""From the DAG to segments: whatever the shape, each stage is sent once and never before its parents."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags

from loomq.pipelines.canvas import LONGEST_RUN, Segment, segments
from loomq.pipelines.graph import StageGraph


def _graph(parents):
    return StageGraph.build(parents).reduced()


def _line(length, prefix="s"):
    return {f"{prefix}{n}": (f"{prefix}{n - 1}",) if n else () for n in range(length)}


def _roots(graph):
    return [name for name in graph.names if not graph.parents[name]]


class Flow:
    """A goal as messages see it: a message carries the rest of its run, and the join of its chord.

    Args:
        pick: Chooses which message is worked on next, and whether a queue has room; each of several choices.
        alone: Stages that are only ever sent by themselves.
    """

    def __init__(self, graph, longest, pick, alone=()):
        self.graph, self.longest, self.pick, self.alone = graph, longest, pick, alone
        self.waits = {name: len(graph.parents[name]) for name in graph.names}
        self.done, self.sent, self.messages, self.held, self.sizes = set(), [], [], [], []

    def send(self, run, join):
        start, *rest = run
        assert self.done.issuperset(self.graph.parents[start]), f"{start} is sent before its parents are done"
        self.sent.append(start)
        self.messages.append((start, rest, join))

    def publish(self, names):
        """Send the segments of stages that became ready, or hold those whose queue has no room."""
        room = [name for name in names if self.pick(2)]
        self.held += [name for name in names if name not in room]
        for segment in segments(self.graph, room, self.longest, self.alone):
            self.sizes += map(len, segment.runs)
            for stages in ([*run, *([segment.join] if segment.join else [])] for run in segment.runs):
                assert len(stages) == 1 or not {*stages} & {*self.alone}
            for run in segment.runs:
                self.send(run, segment.join)

    def complete(self, message):
        stage, rest, join = message
        self.done.add(stage)
        carried = rest[0] if rest else join
        ready = []
        for child in self.graph.children[stage]:
            self.waits[child] -= 1
            if not self.waits[child]:
                ready.append(child)
        if rest:
            self.send(rest, join)  # Celery sends the next of a chain whatever the rows say
        elif join in ready:
            self.send([join], None)  # the backend sends a chord's body when its last part made it ready
        self.publish([name for name in ready if name != carried])
        # None waits for a stage that it does not need, whatever the canvases hold.
        due = {name for name in self.graph.names if self.done.issuperset(self.graph.parents[name])}
        assert due == {*self.sent, *self.held}

    def run(self):
        self.publish(_roots(self.graph))
        while self.messages or self.held:
            at = self.pick(len(self.messages) + len(self.held))
            if at < len(self.messages):
                self.complete(self.messages.pop(at))
            else:  # topped up later: a single signature, which carries nothing
                self.send([self.held.pop(at - len(self.messages))], None)


@settings(max_examples=60)
@given(dags(60), st.integers(1, 9), st.data())
def test_every_stage_is_sent_exactly_once_and_never_before_its_parents_nor_later_than_it_must(parents, longest, data):
    alone = data.draw(st.sets(st.sampled_from(sorted(parents))) | st.just(set()))
    flow = Flow(_graph(parents), longest, lambda choices: data.draw(st.integers(0, choices - 1)), alone)
    flow.run()
    assert sorted(flow.sent) == sorted(parents)
    assert flow.done == set(parents)
    assert max(flow.sizes, default=0) <= longest


@settings(max_examples=60)
@given(dags(40), st.randoms(use_true_random=False))
def test_so_it_is_when_queues_always_have_room(parents, random):
    flow = Flow(_graph(parents), LONGEST_RUN, lambda choices: 1 if choices == 2 else random.randrange(choices))
    flow.run()
    assert sorted(flow.sent) == sorted(parents)
    assert flow.held == []


@settings(max_examples=60)
@given(dags(40), st.data())
def test_a_segment_is_made_of_runs_and_a_join_of_nothing_else(parents, data):
    graph = _graph(parents)
    # Any set of stages of which none comes before another may be ready together.
    ready = []
    for name in data.draw(st.lists(st.sampled_from(graph.names), unique=True)):
        if not any(name in graph.ancestors(one) or one in graph.ancestors(name) for one in ready):
            ready.append(name)
    found = segments(graph, ready)
    assert sorted(run[0] for segment in found for run in segment.runs) == sorted(ready)
    for segment in found:
        for run in segment.runs:
            for before, after in pairwise(run):
                assert graph.children[before] == (after,)
                assert graph.parents[after] == (before,)
        if segment.join is None:
            assert len(segment.runs) == 1
        else:
            assert len(segment.runs) > 1
            assert {run[-1] for run in segment.runs} == set(graph.parents[segment.join])
            assert all(graph.children[run[-1]] == (segment.join,) for run in segment.runs)


def test_a_diamond_is_one_chord_below_its_root():
    graph = _graph({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")})
    assert segments(graph, ["a"]) == (Segment((("a",),)),)
    assert segments(graph, ["b", "c"]) == (Segment((("b",), ("c",)), "d"),)


def test_a_diamond_of_runs_is_a_chord_of_chains():
    parents = {"a": (), "b1": ("a",), "b2": ("b1",), "c": ("a",), "d": ("b2", "c"), "e": ("d",)}
    assert segments(_graph(parents), ["b1", "c"]) == (Segment((("b1", "b2"), ("c",)), "d"),)


def test_a_long_line_is_sent_eight_at_a_time():
    flow = Flow(_graph(_line(20)), 8, lambda choices: 1 if choices == 2 else 0)
    flow.run()
    assert flow.sizes == [8, 8, 4]
    assert flow.sent == [f"s{n}" for n in range(20)]


@pytest.mark.parametrize(
    ("length", "longest", "first"), [(20, 8, 8), (8, 8, 8), (3, 8, 3), (5, 1, 1), (20, LONGEST_RUN, LONGEST_RUN)]
)
def test_a_run_is_as_long_as_it_may_be(length, longest, first):
    (segment,) = segments(_graph(_line(length)), ["s0"], longest)
    assert segment == Segment((tuple(f"s{n}" for n in range(first)),))


def test_a_run_that_is_cut_before_its_join_takes_no_part_in_a_chord():
    parents = {**_line(10), "short": (), "join": ("s9", "short")}
    assert segments(_graph(parents), ["s0", "short"], 8) == (
        Segment((tuple(f"s{n}" for n in range(8)),)),
        Segment((("short",),)),
    )


def test_a_join_that_others_must_reach_too_is_nobodys_body():
    graph = _graph({"a": (), "b": (), "c": (), "join": ("a", "b", "c")})
    assert segments(graph, ["a", "b"]) == (Segment((("a",),)), Segment((("b",),)))
    assert segments(graph, ["a", "b", "c"]) == (Segment((("a",), ("b",), ("c",)), "join"),)


def test_an_n_shape_holds_no_barrier():
    graph = _graph({"a": (), "b": (), "x": ("a",), "y": ("a", "b")})
    assert segments(graph, ["a", "b"]) == (Segment((("a",),)), Segment((("b",),)))


def test_two_joins_over_the_same_parents_are_no_chord():
    graph = _graph({"a": (), "b": (), "x": ("a", "b"), "y": ("a", "b")})
    assert all(segment.join is None for segment in segments(graph, ["a", "b"]))


@pytest.mark.parametrize("alone", ["b2", "d"])
def test_a_chord_is_broken_up_for_a_stage_that_goes_alone(alone):
    parents = {"a": (), "b1": ("a",), "b2": ("b1",), "c": ("a",), "d": ("b2", "c")}
    first = ("b1",) if alone == "b2" else ("b1", "b2")
    assert segments(_graph(parents), ["b1", "c"], alone={alone}) == (Segment((first,)), Segment((("c",),)))


def test_two_fans_side_by_side_are_two_chords():
    graph = _graph({"a": (), "b": (), "c": (), "d": (), "x": ("a", "b"), "y": ("c", "d")})
    assert segments(graph, ["a", "c", "b", "d"]) == (Segment((("a",), ("b",)), "x"), Segment((("c",), ("d",)), "y"))


def test_nothing_ready_is_nothing_to_send():
    assert segments(_graph({"a": ()}), []) == ()
