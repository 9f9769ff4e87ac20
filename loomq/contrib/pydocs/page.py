"""The report's page: one HTML file without scripts or addresses, every text in it escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHOWN = 8

STYLE = """
:root {
  --paper: #fbfaf7; --ink: #23262b; --soft: #6b7078; --line: #e4e1d9;
  --card: #fff; --accent: #2f6f62; --mark: #fde9a9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --ink: #e6e4df; --soft: #9a9fa7; --line: #2d3136;
    --card: #1e2125; --accent: #6fc3b0; --mark: #5c4d17;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 0 0 .4rem }
p { margin: .4rem 0 } small, .soft { color: var(--soft) }
code, .place { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere }
.place { color: var(--accent) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 }
.figures div, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem }
.figures b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .9rem }
.question { font-size: 1.15rem; font-weight: 600 }
.quotes li { margin: .65rem 0 } mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 .1em }
.bar { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem; align-items: center; font-size: .85rem }
.bar span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.bar i { display: block; height: .6rem; border-radius: 4px; background: var(--accent); opacity: .75 }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
pre { margin: .5rem 0 0; white-space: pre-wrap; font-size: .8rem; color: var(--soft) }
"""


def render(report: Mapping[str, Any], groups: int) -> str:
    """Write the page.

    Args:
        report: What ``report.json`` holds.
        groups: How many groups of near duplicates to show.
    """
    version = escape(report["python"])
    sections = [
        _figures(report["figures"]),
        _answer(report["answer"]),
        _summary(report["summary"]),
        _digest(report["digest"]),
        _keywords(report["keywords"]),
        _readability(report["readability"]),
        _near_duplicates(report["near_duplicates"], groups),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What Python {version} says of itself</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>What Python {version} says of itself</h1>
<p class="soft">The docstrings and language topics of the interpreter that ran this pipeline.</p>
{"".join(sections)}
</main>
</body>
</html>
"""


def _figures(figures: Mapping[str, Any]) -> str:
    shown = [
        (f"{figures['documents']:,}", "documents"),
        (f"{figures['chars'] / 1e6:.2f} MB", "of text"),
        (f"{figures['passages']:,}", "passages"),
        (f"{figures['packages']:,}", "packages"),
        (f"{figures['files']:,}", f"source files, {figures['source_bytes'] / 1e6:.1f} MB"),
        (f"{figures['near_duplicate_groups']:,}", "groups of near duplicates"),
        (f"{figures['reading_ease']:g}", "reading ease (100 is easy)"),
    ]
    return f'<div class="figures">{"".join(f"<div><b>{escape(b)}</b>{escape(text)}</div>" for b, text in shown)}</div>'


def _answer(answer: Mapping[str, Any]) -> str:
    quotes = "".join(
        f"<li>{_marked(quote['sentence'], quote['highlights'])}<br>{_place(quote)}</li>" for quote in answer["passages"]
    )
    found = f'<ol class="quotes">{quotes}</ol>' if quotes else f"<p>{escape(answer['answer'])}</p>"
    note = "Passages found by full-text search and quoted as they stand; no language model was involved."
    return (
        f'<h2>A first question</h2><div class="card"><p class="question">{escape(answer["question"])}</p>'
        f"{found}<small>{note} Files are in <code>{escape(answer['root'])}</code>.</small></div>"
    )


def _summary(summary: Mapping[str, Any]) -> str:
    quotes = _quoted(summary["quotes"])
    if " ".join(quote["text"] for quote in summary["quotes"]) == summary["text"]:
        told = quotes
    else:
        basis = f'<p class="soft">It points to:</p>{quotes}' if quotes else ""
        told = f"{_paragraphs(summary['text'])}{basis}"
    return f"<h2>Summary</h2>{told}<p><small>Written by <b>{escape(summary['model'])}</b>.</small></p>"


def _digest(digest: Mapping[str, Any]) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(entry["package"])}</h3>{_quoted(entry["sentences"])}</div>'
        for entry in digest["packages"]
    )
    method = f"<p><small>{escape(digest['method'])}</small></p>"
    return f"<h2>The largest packages in their own words</h2>{method}<div class='grid'>{cards}</div>"


def _keywords(keywords: Mapping[str, Any]) -> str:
    overall = ", ".join(escape(entry["term"]) for entry in keywords["overall"])
    cards = "".join(
        f'<div class="card"><h3>{escape(package)}</h3>{_bars(entries)}</div>'
        for package, entries in keywords["packages"].items()
    )
    return f"<h2>Keywords by package</h2><p>Across all packages: {overall}.</p><div class='grid'>{cards}</div>"


def _readability(readability: Mapping[str, Any]) -> str:
    ranked = readability["packages"]
    overall = readability["overall"]
    told = (
        f"{overall['sentences']:,} sentences of {overall['words_per_sentence']:g} words on average; "
        f"reading ease {overall['reading_ease']:g}, school grade {overall['grade']:g}."
    )
    hardest = _scores("Hardest", ranked[: -SHOWN - 1 : -1])
    return f'<h2>Readability</h2><p>{told}</p><div class="grid">{_scores("Easiest", ranked[:SHOWN])}{hardest}</div>'


def _near_duplicates(groups: Sequence[Mapping[str, Any]], shown: int) -> str:
    cards = "".join(
        f'<div class="card"><h3>{len(group["members"])} passages, {group["similarity"]:.0%} alike</h3>'
        f"{''.join(f'<div>{_place(member)}</div>' for member in group['members'][:SHOWN])}"
        f"<pre>{escape(group['text'][:280])}</pre></div>"
        for group in groups[:shown]
    )
    told = f"{len(groups)} groups of passages share most of their runs of five words. The largest:"
    return f"<h2>Said more than once</h2><p>{told}</p><div class='grid'>{cards}</div>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n"))


def _quoted(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"<p>{escape(entry['text'])} {_place(entry)}</p>" for entry in entries)


def _place(entry: Mapping[str, Any]) -> str:
    citation = entry.get("citation") or f"{entry['file']}:{entry['line']}"
    return f'<span class="place">{escape(citation)}</span> <small>{escape(entry["symbol"])}</small>'


def _bars(entries: Sequence[Mapping[str, Any]]) -> str:
    highest = max((entry["score"] for entry in entries), default=1) or 1
    return "".join(
        f'<div class="bar"><span>{escape(entry["term"])}</span>'
        f'<i style="width: {100 * entry["score"] / highest:.0f}%"></i></div>'
        for entry in entries
    )


def _scores(title: str, entries: Iterable[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(entry['package'])}</td><td>{entry['reading_ease']:g}</td><td>{entry['grade']:g}</td>"
        f"<td>{entry['words_per_sentence']:g}</td></tr>"
        for entry in entries
    )
    head = "<tr><th>package</th><th>ease</th><th>grade</th><th>words a sentence</th></tr>"
    return f'<div class="card"><h3>{title}</h3><table>{head}{rows}</table></div>'


def _marked(text: str, spans: Iterable[Sequence[int]]) -> str:
    """Escape a text and mark parts of it."""
    parts, done = [], 0
    for start, end in spans:
        parts += [escape(text[done:start]), f"<mark>{escape(text[start:end])}</mark>"]
        done = end
    return "".join(parts) + escape(text[done:])
