"""Extract: parse one shard's sources and write down every docstring and language topic with its place."""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.collect import TOPICS
from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Document, write_records
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LANGUAGE = "language reference"

# One space for each, so that places stay; neither JSON nor Postgres takes them all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
# What is looked for in the source to find a line of text again, the least that tells, and how far ahead.
_FRAGMENT, _TELLING, _AHEAD = 24, 4, 8
_INNER = ("body", "orelse", "handlers", "finalbody")


class Extract(SyncProcessingBackend):
    """Read the docstrings of one shard by ``ast``; nothing is imported.

    Args:
        min_chars: Shorter texts are left out.
    """

    def __init__(self, min_chars: int = 80) -> None:
        self._min_chars = min_chars

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write the shard's documents as JSON lines; a file that does not parse is counted and left out."""
        space = workspace()
        shard = space.read_json(payload["shard"])
        found: list[Document] = []
        unreadable = 0
        for name in shard["files"]:
            try:
                found += documents(Path(shard["root"]), name)
            except (OSError, SyntaxError, ValueError, RecursionError):
                unreadable += 1
        kept = [document for document in found if len(document.text) >= self._min_chars]
        ref = f"{payload['shard'].removesuffix('.json')}.docs.jsonl"
        output = {
            "docs_ref": ref,
            "docs": write_records(space, ref, kept),
            "chars": sum(len(document.text) for document in kept),
            "files": len(shard["files"]),
            "unreadable_files": unreadable,
        }
        return {"output": output, "model_used": None}


def documents(root: Path, name: str) -> Iterator[Document]:
    """Read one source file.

    Args:
        root: The library's folder.
        name: The file below it.

    Raises:
        SyntaxError: It does not parse.
        OSError: It cannot be read.
    """
    with tokenize.open(root / name) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its authors know their escapes and their literals
        tree = ast.parse(source, filename=name)
    lines = source.split("\n")
    for kind, symbol, literal in _topics(tree) if name == TOPICS else _docstrings(tree, module_name(name)):
        text = inspect.cleandoc(_UNPRINTABLE.sub(" ", literal.value)).rstrip()
        if text:
            package = LANGUAGE if kind == "topic" else symbol.partition(".")[0]
            skipped = literal.value[: len(literal.value) - len(literal.value.lstrip())].count("\n")
            last: int = literal.end_lineno or literal.lineno
            places = tuple(_places(text, lines, min(literal.lineno + skipped, last), last))
            yield Document(f"{name}:{places[0][1]}:{symbol}", package, symbol, name, places, kind, text)


def module_name(file: str) -> str:
    """Give the dotted name of the module in a file."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str, Any]]:
    """Find ``(kind, symbol, literal)`` of what is documented, in no special order; not inside functions."""
    open_nodes: list[tuple[Any, str]] = [(tree, module)]
    while open_nodes:
        node, symbol = open_nodes.pop()
        kind = _KINDS.get(type(node))
        first = node.body[0] if kind and node.body else None
        if kind and isinstance(first, ast.Expr) and _is_text(first.value):
            yield kind, symbol, first.value
        if kind == "function":
            continue
        for inner in _INNER:
            children = getattr(node, inner, ())
            open_nodes += [(child, f"{symbol}.{child.name}" if type(child) in _KINDS else symbol) for child in children]


def _topics(tree: ast.Module) -> Iterator[tuple[str, str, Any]]:
    """Find the texts of ``help('assert')`` and its like, in the one dictionary that holds them."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and _is_text(value):
                    yield "topic", f"help({key.value!r})", value


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _places(text: str, source: list[str], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Follow a text through its literal: escapes, continued lines and joined literals shift the two apart."""
    here = first
    distance = None
    for number, line in enumerate(text.split("\n")):
        expected = min(here + (number > 0), last)
        here = _found(line.strip()[:_FRAGMENT], source, expected, min(expected + _AHEAD, last), here)
        if here - number != distance:
            distance = here - number
            yield number, here


def _found(fragment: str, source: list[str], expected: int, last: int, before: int) -> int:
    if len(fragment) < _TELLING:
        return expected
    nearby = (*range(expected, last + 1), before)
    return next((line for line in nearby if fragment in _unescaped(source[line - 1])), expected)


def _unescaped(line: str) -> str:
    return line.replace("\\'", "'").replace('\\"', '"').replace("\\\\", "\\") if "\\" in line else line
