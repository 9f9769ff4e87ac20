"""``loomq graph`` draws the same graph in four forms."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from strategies import dags

from loomq.pipelines.graph import StageGraph
from loomq.services import drawing as forms
from loomq.services.drawing import Box, Drawing
from loomq.services.drawing_svg import svg

SVG = "{http://www.w3.org/2000/svg}"


def drawing_of(parents, title="p", statuses=None):
    graph = StageGraph.build(parents).reduced()
    boxes = {
        name: Box(name, f"w.{name}", level, (statuses or {}).get(name, ""))
        for level, names in enumerate(graph.levels)
        for name in names
    }
    edges = tuple((above, below) for below in graph.names for above in graph.parents[below])
    return Drawing(title, boxes, forms._rows(graph, boxes, edges), edges)


def test_the_tree_shows_a_join_under_the_last_of_its_parents(program):
    out, _ = program("graph", "diamond")
    assert out.splitlines() == [
        "diamond",
        "└─ top  (echo.local)",
        "   ├─ left  (echo.local)",
        "   │  └─ bottom …",
        "   └─ right  (echo.frontier)",
        "      └─ bottom  (echo.local, joins 2)",
    ]


def test_mermaid_and_dot_name_every_edge(program):
    mermaid, _ = program("graph", "diamond", "--format", "mermaid")
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count(" --> ") == 4
    dot, _ = program("graph", "diamond", "-f", "dot")
    assert '"left" -> "bottom";' in dot
    assert dot.count(" -> ") == 4


def test_svg_is_one_well_formed_file_that_needs_nothing_else(program):
    program("graph", "diamond", "--format", "svg", "--output", "it.svg")
    text = (program.folder / "it.svg").read_text()
    root = ET.fromstring(text)  # our own file
    assert len(root.findall(f".//{SVG}path")) == 4
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == [
        "pipeline diamond",
        "top: echo.local",
        "left: echo.local",
        "right: echo.frontier",
        "bottom: echo.local",
    ]
    assert not [word for word in ("<script", "href", "@import", "url(") if word in text]


def test_json_carries_the_graph_and_the_drawing(program):
    found = json.loads(program("graph", "diamond", "--json")[0])
    assert [stage["level"] for stage in found["stages"]] == [0, 1, 1, 2]
    assert found["edges"] == [["top", "left"], ["top", "right"], ["left", "bottom"], ["right", "bottom"]]
    assert found["drawing"].startswith("diamond\n")


def test_strange_texts_cannot_break_out_of_a_drawing():
    strange = drawing_of({"end": ()}, title='<script>"\\x&')
    assert ET.fromstring(svg(strange))[0].text == 'pipeline <script>"\\x&'
    assert forms.dot(strange).startswith('digraph "<script>\\"\\\\x&" {')
    assert "s0[" in forms.mermaid(strange)  # `end` is a word of Mermaid


@pytest.mark.parametrize("status", [status for status in forms.COLORS if status])
def test_a_state_has_its_colour_in_every_form(status):
    drawn = drawing_of({"a": ()}, statuses={"a": status})
    fill, _ = forms.COLORS[status]
    assert fill in svg(drawn)
    assert fill in forms.dot(drawn)
    assert f"classDef {status} fill:{fill}" in forms.mermaid(drawn)
    assert status in forms.tree(drawn)


@settings(max_examples=40, deadline=None)
@given(dags())
def test_any_graph_is_drawn_with_every_stage_once_and_no_two_boxes_over_each_other(parents):
    drawn = drawing_of(parents)
    root = ET.fromstring(svg(drawn))
    boxes = [rect.attrib for rect in root.iter(f"{SVG}rect") if "rx" in rect.attrib]
    assert len(boxes) == len(drawn.boxes)
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            same_row = one["y"] == other["y"]
            left, right = sorted([one, other], key=lambda box: float(box["x"]))
            assert not same_row or float(left["x"]) + float(left["width"]) <= float(right["x"])
    lines = forms.tree(drawn).splitlines()[1:]
    assert sum(not line.endswith("…") for line in lines) == len(drawn.boxes)


def test_crossings_are_avoided_where_an_order_without_any_exists():
    drawn = drawing_of({"a": (), "b": (), "x": ("b",), "y": ("a",)})
    assert drawn.rows in ((("a", "b"), ("y", "x")), (("b", "a"), ("x", "y")))
