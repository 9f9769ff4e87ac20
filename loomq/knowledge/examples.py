"""Examples of good answers: a list of inputs and outputs as numbered text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loomq.knowledge.spec import MAX_FOLDER_BYTES
from loomq.yaml_text import MAX_BYTES, parse_document

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def numbered(text: str) -> str | None:
    """Write a YAML or JSON list of mappings with ``input`` and ``output`` as numbered examples.

    Other keys of the mappings are left out. ``None`` if the text is anything else, or more than YAML may be.
    """
    if len(text) > MAX_BYTES:
        return None
    chunks, size = [], 0
    try:
        for chunk in _written(_parsed(text)):
            chunks.append(chunk)
            size += len(chunk)
            # A few lines of YAML can repeat one long text thousands of times.
            if size > MAX_FOLDER_BYTES:
                return None
    except (ValueError, RecursionError):
        return None
    # JSON can write half a surrogate pair, which no provider takes.
    return "".join(chunks).strip().encode("utf-8", "replace").decode()


def _parsed(text: str) -> list[dict[str, Any]]:
    """Read the examples.

    Raises:
        ValueError: The text holds none.
    """
    try:
        # JSON has spellings that YAML's reader refuses: tabs, surrogate pairs.
        found = json.loads(text)
    except ValueError:
        document, problems = parse_document(text, "examples")
        found = document.value if document and not problems else None
    if isinstance(found, list) and found and all(map(_is_example, found)):
        return found
    raise ValueError("no list of examples")


def _is_example(value: Any) -> bool:
    return isinstance(value, dict) and "input" in value and "output" in value


def _written(examples: list[dict[str, Any]]) -> Iterator[str]:
    for number, example in enumerate(examples, 1):
        yield f"Example {number}"
        for label, value in (("Input", example["input"]), ("Output", example["output"])):
            yield f"\n{label}: "
            yield from [value] if isinstance(value, str) else _ENCODER.iterencode(value)
        yield "\n\n"
