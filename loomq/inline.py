"""What may be kept inline: JSON that Postgres can store, up to a size; anything larger goes by file ref."""

from __future__ import annotations

import json
import re
from typing import Any

from loomq.errors import InlineValueError, PayloadTooLargeError

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LONGEST_TEXT = 8_000


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
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InlineValueError(f"{what} is not JSON: {error}") from None
    if _ESCAPED_NUL.search(text):
        raise InlineValueError(f"{what} holds a NUL character, which Postgres cannot store")
    if size > limit_bytes:
        raise PayloadTooLargeError(
            f"{what} takes {size:,} bytes; at most {limit_bytes:,} are kept inline",
            hint="write it to the workspace (loomq.workspace.WorkspaceManager.write_json), pass its name on",
        )
    return text


def storable_text(text: str) -> str:
    """Make a text fit for ``jsonb``: no NUL, no lone surrogate, of bounded length."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return clean if len(clean) <= _LONGEST_TEXT else clean[:_LONGEST_TEXT] + " …"
