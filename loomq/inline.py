"""What may be kept inline: JSON that Postgres can store, up to a size; anything larger goes by file ref."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from loomq.errors import InlineValueError, PayloadTooLargeError

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LONGEST_TEXT = 8_000
_FAR = 2
_LEAST = 2  # what any value takes with the comma behind it
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def inline_json(value: Any, *, what: str, limit_bytes: int) -> str:
    """Write a value as JSON text.

    Args:
        value: What a user or a worker gave.
        what: Its name in an error text, such as ``"the output of stage chunk"``.
        limit_bytes: The most that the text may take.

    Raises:
        InlineValueError: It is not JSON, or holds what ``jsonb`` cannot store.
        PayloadTooLargeError: It is too large.
    """
    if _is_far_larger(value, limit_bytes):
        raise _too_large(what, f"more than {_FAR * limit_bytes:,} bytes", limit_bytes)
    try:
        text = _ENCODER.encode(value)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InlineValueError(f"{what} is not JSON: {error}") from None
    if size > limit_bytes:
        raise _too_large(what, f"{size:,} bytes", limit_bytes)
    if _ESCAPED_NUL.search(text):
        raise InlineValueError(f"{what} holds a NUL character, which Postgres cannot store")
    return text


def _too_large(what: str, size: str, limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"{what} takes {size}; at most {limit_bytes:,} are kept inline",
        hint="write it to the workspace (loomq.workspace.WorkspaceManager.write_json) and pass its name on as a file"
        " ref; the worker that lists the field in resolve_file_refs gets the content",
    )


def _is_far_larger(value: Any, limit_bytes: int) -> bool:
    """Say whether a value is several times too large, without writing it, which takes a second for 100 MB.

    Lists and objects are counted once, so one that holds itself has an end here, and is told by ``json``.
    """
    most = _FAR * limit_bytes
    size, seen, found = 0, set(), [value]
    while found and size <= most:
        one = found.pop()
        if isinstance(one, str):
            size += len(one) + _LEAST
            continue
        size += _LEAST
        if isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            if len(one) * _LEAST > most:
                return True
            if isinstance(one, dict):
                found.extend(one)
                found.extend(one.values())
            else:
                found.extend(one)
    return size > most


def storable(value: Any) -> Any:
    """Make a JSON value fit for ``jsonb``: no NUL and no lone surrogate in any text, no number that JSON has not."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key): storable(one) for key, one in value.items()}
    return [storable(one) for one in value] if isinstance(value, list | tuple) else value


def storable_text(text: str) -> str:
    """Make a text fit for ``jsonb``: no NUL, no lone surrogate, of bounded length."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return clean if len(clean) <= _LONGEST_TEXT else clean[:_LONGEST_TEXT] + " …"
