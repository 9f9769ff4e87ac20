"""Lenient JSON: the one object that a model meant, out of whatever it wrote around it (formats.md §9)."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from loomq.errors import LLMAnswerError
from loomq.redaction import excerpt
from loomq.yaml_text import parse_document

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_YAML_CHARS = 64 * 1024
MAX_BLOCKS = 100

_OPEN, _CLOSE = "<think>", "</think>"
_YAML = {"yaml", "yml"}

# Every quantifier is possessive: what was read is not read again, so time is linear in the text.
_FENCE = re.compile(r"^[ \t]{0,3}+(`{3,}+)[ \t]*+([\w+-]*+)[^`\n]*+$", re.MULTILINE)
_START = re.compile(r'(\[\s*+)?\{\s*+["}]')
_BRACES = re.compile(r'[{}]|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# strict=False: a line break inside a text is the commonest slip of all, and nobody can misread it.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)


class Parsed(NamedTuple):
    """The object in an answer.

    Args:
        repair: What had to be done to read it, ``None`` if it was JSON: ``unescaped`` (line breaks within a text),
            ``fenced`` (taken out of a fenced block), ``yaml`` (which was YAML) or ``surrounded`` (taken out of a text).
    """

    value: dict[str, Any]
    repair: str | None


class Read(NamedTuple):
    """The JSON in an answer, of any kind; ``repair`` as of ``Parsed``."""

    value: Any
    repair: str | None


class _Missing:
    """What stands for "no JSON here", since ``None`` is JSON."""


def parse_object(text: str) -> Parsed:
    """Read the object in a model's answer.

    In this order: the whole text; a fenced block of JSON, or of YAML if it says so; the first balanced object outside
    ``<think>…</think>``; a fenced block that is a YAML mapping.

    Raises:
        LLMAnswerError: There is none, or a list or a scalar in its place; the beginning of the text is quoted.
    """
    found = parse_json(text)
    return Parsed(_object(found.value, text), found.repair)


def parse_json(text: str) -> Read:
    """Read the JSON in a model's answer as ``parse_object`` does, whatever value it is.

    Raises:
        LLMAnswerError: There is none.
    """
    value, repair = _found(text)
    if isinstance(value, _Missing):
        raise _no_object("is no JSON object", text)
    return Read(value, repair)


def _found(text: str) -> tuple[Any, str | None]:
    whole = _loads(text)
    if not isinstance(whole, _Missing):
        return whole, None if _is_json(text) else "unescaped"
    thought = list(_thought(text))
    blocks = list(islice(_fenced(text, thought), MAX_BLOCKS))
    fenced = [_loads(body) if tag not in _YAML else _yaml(body) for tag, body in blocks]
    found = [value for value in fenced if not isinstance(value, _Missing)]
    if found:
        value = next((value for value in found if isinstance(value, dict)), found[0])
        is_yaml = any(
            value is one and tag in _YAML and isinstance(_loads(body), _Missing)
            for (tag, body), one in zip(blocks, fenced, strict=True)
        )
        return value, "yaml" if is_yaml else "fenced"
    value = _balanced(text, thought)
    if not isinstance(value, _Missing):
        return value, "surrounded"
    mappings = (_yaml(body) for tag, body in blocks if tag not in _YAML)
    return next((value for value in mappings if isinstance(value, dict)), _Missing()), "yaml"


def _object(value: Any, text: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise _no_object(f"is {_kind(value)} and not a JSON object", text)


def _no_object(told: str, text: str) -> LLMAnswerError:
    return LLMAnswerError(
        f"the model's answer {told}; it begins: {excerpt(text) or '(it is empty)'}",
        hint="tell the model in system_prompt to answer with one JSON object",
    )


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else f"the value {json.dumps(value)[:40]}"


def _loads(text: str) -> Any:
    try:
        return _DECODER.decode(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return _Missing()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _yaml(text: str) -> Any:
    """Read a block as YAML, with the house's loader: no tags, no bombs, no duplicate keys; only a mapping counts."""
    value = _loads(text)
    if not isinstance(value, _Missing) or len(text) > MAX_YAML_CHARS:
        return value
    document, problems = parse_document(text, "answer")
    return document.value if document and not problems and isinstance(document.value, dict) else _Missing()


def _thought(text: str) -> Iterator[tuple[int, int]]:
    """Find the spans of thinking; some chat templates swallow the first opening tag."""
    start, end = text.find(_OPEN), text.find(_CLOSE)
    if end >= 0 and not 0 <= start < end:
        yield 0, end + len(_CLOSE)
        start = text.find(_OPEN, end)
    while start >= 0:
        end = text.find(_CLOSE, start)
        if end < 0:
            return
        yield start, end + len(_CLOSE)
        start = text.find(_OPEN, end)


def _fenced(text: str, thought: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """List the fenced blocks as language and content; the last may lack its end."""
    opening: re.Match[str] | None = None
    for line in _outside(_FENCE.finditer(text), thought):
        if opening is None:
            opening = line
        elif not line[2] and len(line[1]) >= len(opening[1]):
            yield opening[2].lower(), text[opening.end() : line.start()]
            opening = None
    if opening is not None:
        yield opening[2].lower(), text[opening.end() :]


def _outside(matches: Iterator[re.Match[str]], spans: list[tuple[int, int]]) -> Iterator[re.Match[str]]:
    """Drop the matches that begin inside one of the spans; both come in order."""
    at = 0
    for match in matches:
        while at < len(spans) and spans[at][1] <= match.start():
            at += 1
        if at == len(spans) or match.start() < spans[at][0]:
            yield match


def _balanced(text: str, thought: list[tuple[int, int]]) -> Any:
    """Find the first balanced object.

    A brace that no key follows is prose. What balances and is no JSON is passed over as a whole, and what never
    balances ends the search: the objects inside are fragments of an answer and not the answer.
    """
    passed = 0
    for start in _outside(_START.finditer(text), thought):
        if start.start() < passed:
            continue
        try:
            return _DECODER.raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):
            passed = _end(text, start.start())
    return _Missing()


def _end(text: str, start: int) -> int:
    """Find where the braces that open at ``start`` are balanced; the end of the text if they never are."""
    depth = 0
    for token in _BRACES.finditer(text, start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if not depth:
                return token.end()
    return len(text)
