"""A drawing as SVG: one file that needs no script, no font and no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from loomq.services.drawing import COLORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.services.drawing import Drawing

_CHAR = 7.2  # of the monospace font at 12 px
_PAD, _HEIGHT = 12.0, 44.0
_GAP_X, _GAP_Y = 28.0, 46.0
_PASSING = 12.0  # the room of an edge that passes a level by
_MARGIN, _HEAD = 20.0, 34.0

Point = tuple[float, float]


def svg(drawing: Drawing) -> str:
    """Draw the graph, levels from top to bottom."""
    places, width = _places(drawing)
    height = _HEAD + len(drawing.rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN
    title = escape(drawing.title)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"',
        f' width="{width:.0f}" height="{height:.0f}" font-family="ui-monospace, monospace" font-size="12">',
        f"<title>pipeline {title}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_MARGIN:.0f}" y="{_MARGIN + 12:.0f}" font-size="15" font-weight="bold">{title}</text>',
        '<g fill="none" stroke="#777777" stroke-width="1.2">',
        *(f'<path d="{_curve(drawing, edge, places)}"/>' for edge in drawing.edges),
        "</g>",
        *_boxes(drawing, places),
        "</svg>",
    ]
    return "\n".join(lines)


def _width(drawing: Drawing, what: str | tuple[str, str]) -> float:
    if isinstance(what, tuple):
        return _PASSING
    box = drawing.boxes[what]
    return max(len(box.name), len(box.label)) * _CHAR + 2 * _PAD


def _places(drawing: Drawing) -> tuple[dict[tuple[int, str | tuple[str, str]], Point], float]:
    """Give the middle of everything by level, each level centred, and the width of the whole."""
    widths = [[_width(drawing, what) for what in row] for row in drawing.rows]
    spans = [sum(row) + _GAP_X * (len(row) - 1) for row in widths]
    whole = max(*spans, len(drawing.title) * 9.5, 120.0) + 2 * _MARGIN
    places = {}
    for level, row in enumerate(drawing.rows):
        x = (whole - spans[level]) / 2
        y = _MARGIN + _HEAD + level * (_HEIGHT + _GAP_Y) + _HEIGHT / 2
        for what, width in zip(row, widths[level], strict=True):
            places[level, what] = (x + width / 2, y)
            x += width + _GAP_X
    return places, whole


def _curve(drawing: Drawing, edge: tuple[str, str], places: dict[tuple[int, str | tuple[str, str]], Point]) -> str:
    """Lead an edge from box to box, straight past the levels between them."""
    above, below = (drawing.boxes[name] for name in edge)
    (x, y) = places[above.level, edge[0]]
    y += _HEIGHT / 2
    path = [f"M{x:.1f},{y:.1f}"]
    for level in range(above.level + 1, below.level + 1):
        to_x, to_y = places[level, edge if level < below.level else edge[1]]
        top, bend = to_y - _HEIGHT / 2, _GAP_Y / 2
        path.append(f"C{x:.1f},{y + bend:.1f} {to_x:.1f},{top - bend:.1f} {to_x:.1f},{top:.1f}")
        x, y = to_x, to_y + _HEIGHT / 2
        if level < below.level:
            path.append(f"V{y:.1f}")
    return " ".join(path)


def _boxes(drawing: Drawing, places: dict[tuple[int, str | tuple[str, str]], Point]) -> Iterator[str]:
    for name, box in drawing.boxes.items():
        x, y = places[box.level, name]
        width = _width(drawing, name)
        fill, line = COLORS[box.status]
        told = f"{name}: {box.label}" + (f", {box.status}" if box.status else "")
        yield (
            f'<g text-anchor="middle"><title>{escape(told)}</title>'
            f'<rect x="{x - width / 2:.1f}" y="{y - _HEIGHT / 2:.1f}" width="{width:.1f}" height="{_HEIGHT:.0f}" rx="6"'
            f' fill="{fill}" stroke="{line}" stroke-width="1.5"/>'
            f'<text x="{x:.1f}" y="{y - 3:.1f}" font-weight="bold">{escape(name)}</text>'
            f'<text x="{x:.1f}" y="{y + 13:.1f}" fill="#555555" font-size="11">{escape(box.label)}</text></g>'
        )
