"""What is wrong with a message, if anything: the shape that Celery and kombu take for granted, checked before they do.

Each check gives a sentence for people, or ``None``.
"""

from __future__ import annotations

import base64
import binascii
import math
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeGuard

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.utils.json import loads

from loomq.queues.names import HEADER, StageMessage, worker_of

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_BYTES = 16 * 2**20
_DEEPEST = 200  # what goes on to a child is pickled, which gives up at about a thousand levels
_LONGEST_ID = 255  # AMQP's limit for a short text, and so for a Celery task id
_LONGEST_S = 1e9
_PARTS = 3
_LEVELS = 4
_HIGHEST_PRIORITY = 255


def envelope_fault(item: bytes) -> str | None:
    """Say why kombu could not make a message of an item of a Redis list."""
    if len(item) > LARGEST_BYTES:
        return f"it takes {len(item):,} bytes; at most {LARGEST_BYTES:,} are read"
    try:
        envelope = loads(item)
    except RecursionError:
        return "the envelope is nested too deeply"
    except Exception as error:  # noqa: BLE001  (kombu's JSON makes objects of some values, and what it raises is theirs)
        return f"the envelope is not JSON: {error}"
    if not isinstance(envelope, dict):
        return f"the envelope must be an object, not {_shown(envelope)}"
    return _part_fault(envelope)


def _part_fault(envelope: dict[str, Any]) -> str | None:
    if _is_deeper(envelope, _DEEPEST):
        return f"the envelope is nested more than {_DEEPEST} levels deep"
    properties, headers = envelope.get("properties"), envelope.get("headers")
    if not isinstance(properties, dict):
        return _must("the properties of the envelope", "an object", properties)
    if not isinstance(headers, dict | None):
        return _must("the headers of the envelope", "an object", headers)
    return _delivery_fault(properties) or _encoding_fault(envelope.get("body"), properties.get("body_encoding"))


def _delivery_fault(properties: dict[str, Any]) -> str | None:
    tag, info = properties.get("delivery_tag"), properties.get("delivery_info")
    if not (is_text(tag) or type(tag) is int):
        return _must("the delivery_tag of the envelope", "a text", tag)
    if not isinstance(info, dict):
        return _must("the delivery_info of the envelope", "an object", info)
    for name in ("exchange", "routing_key"):
        if name not in info or not isinstance(info[name], str | None):
            return _must(f"the {name} in the envelope's delivery_info", "a text", info.get(name))
    return None


def _encoding_fault(body: object, encoding: object) -> str | None:
    if not isinstance(body, str):
        return _must("the body of the envelope", "a text", body)
    if encoding is None or (isinstance(encoding, str) and encoding.lower() in {"", "utf-8"}):
        return None
    if encoding != "base64":
        return _must("the body_encoding of the envelope", "base64 or utf-8", encoding)
    try:
        base64.b64decode(body.encode())
    except (binascii.Error, UnicodeEncodeError) as error:
        return f"the body of the envelope is not base64: {error}"
    return None


def message_fault(headers: dict[str, Any], properties: dict[str, Any], payload: object) -> str | None:
    """Say why Celery's worker could not make a task of a message, in any of its protocols.

    Args:
        payload: The decoded body.
    """
    if _is_deeper(headers, _DEEPEST) or _is_deeper(payload, _DEEPEST):
        return f"it is nested more than {_DEEPEST} levels deep"
    found = task_of(headers, payload)
    if found is None:
        return "its headers name no task"
    fields, call = found
    for name, (holds, wanted) in _FIELDS.items():
        if not holds(fields.get(name)):
            return _must(f"its {name}", wanted, fields.get(name))
    priority = properties.get("priority")
    if priority is not None and not (type(priority) is int and 0 <= priority <= _HIGHEST_PRIORITY):
        return _must("its priority", f"a number from 0 to {_HIGHEST_PRIORITY}", priority)
    if hiding := _RESERVED & fields.keys():
        return f"its header {min(hiding)} has the name of something else in Celery's request"
    return _call_fault(call) or _canvas_fault(fields, call) or _marker_fault(fields, call)


def task_of(headers: dict[str, Any], payload: object) -> tuple[dict[str, Any], object] | None:
    """Give what a message says of its task, and its call as ``[args, kwargs, embed]``.

    Celery's protocol 2 says it in the headers and protocol 1 in the body; some clients mix them.
    """
    if isinstance(payload, dict) and ("args" in payload or "task" not in headers):
        fields = {**payload, **headers} if "task" in headers else payload
        embed = {name: payload.get(name) for name in ("callbacks", "errbacks", "chord")}
        call: object = [payload.get("args", []), payload.get("kwargs", {}), embed]
    else:
        fields, call = headers, payload
    return (fields, call) if "task" in fields else None


def is_text(value: object) -> TypeGuard[str]:
    """Say whether a value may be an id or a name on a broker."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable()


def _call_fault(call: object) -> str | None:
    if not isinstance(call, list | tuple) or len(call) != _PARTS:
        return _must("its body", "[args, kwargs, embed]", call)
    args, kwargs, embed = call
    if not isinstance(args, list | tuple):
        return _must("its args", "a list", args)
    if not isinstance(kwargs, dict):
        return _must("its kwargs", "an object", kwargs)
    if not isinstance(embed, dict | None):
        return _must("the third part of its body", "an object", embed)
    return None


def _canvas_fault(fields: dict[str, Any], call: Any) -> str | None:
    embed = {**fields, **(call[2] or {})}  # as Celery puts them together
    for name in ("callbacks", "errbacks", "chain"):
        following = embed.get(name)
        if following is not None and not (isinstance(following, list) and all(map(_is_signature, following))):
            return _must(f"its {name}", "a list of signatures", following)
    if embed.get("chord") is not None and not _is_signature(embed["chord"]):
        return _must("its chord", "a signature", embed["chord"])
    return None


def _marker_fault(fields: dict[str, Any], call: Any) -> str | None:
    marker = fields.get(HEADER)
    if marker is None:
        return None
    if worker_of(fields["task"]) is None:
        return f'its header "{HEADER}" is for loomq\'s workers, and {_shown(fields["task"])} is none'
    if not isinstance(marker, dict) or not isinstance(marker.get("call", False), bool):
        return _must(f'its header "{HEADER}"', "what loomq writes there", marker)
    priority = marker.get("priority")
    if type(priority) is not int or not 0 <= priority < _LEVELS:
        return _must(f'the priority in its header "{HEADER}"', f"a level from 0 to {_LEVELS - 1}", priority)
    try:
        StageMessage.parse(call[0])
    except ValueError as error:
        return str(error)
    return None


def _is_signature(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in _SIGNATURE.items())


def _is_time(value: object) -> bool:
    try:
        moment = maybe_make_aware(maybe_iso8601(value), UTC).astimezone(UTC)
    except (AttributeError, ValueError, TypeError, OverflowError):
        return False
    return bool(1 < moment.year < 9999)  # noqa: PLR2004  (or local time could not be told)


def _are_limits(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) not in {0, 2}:
        return False
    return all(
        limit is None or (type(limit) in {int, float} and math.isfinite(limit) and 0 <= limit <= _LONGEST_S)
        for limit in value
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _or_none(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or holds(value)


def _number(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31


_SIGNATURE: dict[str, Any] = {"task": str, "args": list | tuple, "kwargs": dict, "options": dict}
# The headers become attributes of the request.
_RESERVED = {"loomq_goal", "loomq_outcome", *(name for name in dir(Context) if callable(getattr(Context, name)))}
_ID = f"a text of at most {_LONGEST_ID} printable characters"
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "id": (is_text, _ID),
    "task": (is_text, _ID),
    "timelimit": (_or_none(_are_limits), "a pair of limits in seconds"),
    "eta": (_or_none(_is_time), "a time in ISO 8601"),
    "expires": (_or_none(_is_time), "a time in ISO 8601"),
    "retries": (_or_none(_number), "a number"),
    "group": (_or_none(is_text), _ID),
    "group_index": (_or_none(_number), "a number"),
    "root_id": (_or_none(is_text), _ID),
    "parent_id": (_or_none(is_text), _ID),
    "shadow": (_or_none(lambda value: value == "" or is_text(value)), _ID),
    "stamped_headers": (_or_none(_are_texts), "a list of texts"),
    "stamps": (_or_none(lambda value: isinstance(value, dict)), "an object"),
}


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a value has more levels than this, found without recursion."""
    layer = [value]
    for _ in range(levels):
        layer = [
            each
            for container in layer
            if isinstance(container, dict | list | tuple)
            for each in (container.values() if isinstance(container, dict) else container)
        ]
        if not layer:
            return False
    return True


def _must(what: str, wanted: str, value: object) -> str:
    return f"{what} is missing" if value is None else f"{what} must be {wanted}, not {_shown(value)}"


def _shown(value: object) -> str:
    """Name a value in a sentence."""
    if value is None:
        return "null"
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    shown = repr(value[:80]) if isinstance(value, str | bytes) else f"{value!r:.80}"
    return f"{type(value).__name__} {shown}"
