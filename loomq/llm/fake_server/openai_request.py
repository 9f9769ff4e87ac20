"""What chat completions take: tools, structured output, and conversations in which every tool call is answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.conversation import blocks_of, everything_in, rounds
from loomq.llm.fake_server.schemas import plain_fault, schema_fault, strict_fault
from loomq.llm.fake_server.wire import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KINDS = {401: "invalid_request_error", 429: "requests"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
#: The keys of a message, by who says it. ``annotations`` is none, but the official client sends it back.
MESSAGE = {
    "developer": {"role", "content", "name"},
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "audio", "function_call", "tool_calls", "annotations"},
    "tool": {"role", "content", "name", "tool_call_id"},
    "function": {"role", "content", "name"},
}
FUNCTION = {"name", "description", "parameters", "strict"}
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CHOICES = ("auto", "none", "required")
UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
    "The following tool_call_ids did not have response messages: "
)


def error(status: int, message: str, code: str | None = None, *, param: str | None = None) -> RefusedError:
    """Make an error of the kind that goes with its status."""
    kind = KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    found = code or CODES.get(status)
    if found == "insufficient_quota":
        kind = found
    return RefusedError(status, {"error": {"message": message, "type": kind, "param": param, "code": found}})


def argument(name: str, message: str, code: str | None = None) -> RefusedError:
    """Make the error of an argument."""
    return error(400, message, code, param=name)


def check_tools(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the tools of a request; gives their names.

    Raises:
        RefusedError: They are not as they should be.
    """
    tools = body.get("tools")
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise _wrong_type("tools", "an array of objects")
    if not tools:
        raise argument("tools", "Invalid 'tools': empty array. Expected an array with minimum length 1.", "empty_array")
    return tuple(_check_tool(f"tools[{at}]", tool) for at, tool in enumerate(tools))


def _check_tool(where: str, tool: Any) -> str:
    kind = str(tool.get("type")) if isinstance(tool, dict) else "none"
    if kind not in ("function", "custom"):
        raise argument(f"{where}.type", f"Invalid value for '{where}.type': supported are 'function' and 'custom'.")
    _check_keys(where, tool, (kind,), {"type", kind})
    function = tool[kind]
    where = f"{where}.{kind}"
    _check_keys(where, function, ("name",), FUNCTION if kind == "function" else {"name", "description", "format"})
    name = function["name"]
    _check_name(f"{where}.name", name)
    parameters = function.get("parameters", {"type": "object", "properties": {}, "additionalProperties": False})
    fault = strict_fault(parameters) if function.get("strict") else plain_fault(parameters)
    if fault:
        said = f"Invalid schema for function '{name}': {fault}"
        raise argument(f"{where}.parameters", said, "invalid_function_parameters")
    return str(name)


def check_tool_choice(body: Mapping[str, Any], tools: Sequence[str]) -> str:
    """Check how tools are to be used; gives it as ``Call`` has it.

    Raises:
        RefusedError: It is not as it should be, or there are no tools.
    """
    for name in ("tool_choice", "parallel_tool_calls"):
        if body.get(name) is not None and not tools:
            raise argument(name, f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.")
    if not isinstance(body.get("parallel_tool_calls", True), bool):
        raise _wrong_type("parallel_tool_calls", "a boolean")
    choice = body.get("tool_choice")
    if choice is None:
        return "auto" if tools else "none"
    if isinstance(choice, str):
        if choice not in CHOICES:
            raise argument("tool_choice", f"Invalid value: '{choice}'. Supported values are: {', '.join(CHOICES)}.")
        return choice
    _check_keys("tool_choice", choice, ("type",), {"type", "function", "custom", "allowed_tools"})
    if choice["type"] == "allowed_tools":
        mode = choice.get("allowed_tools")
        return "required" if isinstance(mode, dict) and mode.get("mode") == "required" else "auto"
    named = choice.get(str(choice["type"]))
    _check_keys(f"tool_choice.{choice['type']}", named, ("name",), {"name"})
    if named["name"] not in tools:
        raise argument("tool_choice", f"Tool choice '{named['name']}' not found in 'tools' parameter.")
    return str(named["name"])


def check_response_format(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Check how the answer should look; gives the schema if there is one.

    Raises:
        RefusedError: It is not as it should be.
    """
    wanted = body.get("response_format")
    if wanted is None:
        return None
    _check_keys("response_format", wanted, ("type",), {"type", "json_schema"})
    if wanted["type"] not in ("text", "json_object", "json_schema"):
        raise argument("response_format.type", f"Invalid value: '{wanted['type']}'.", "invalid_value")
    if wanted["type"] == "json_object" and "json" not in "\n".join(map(everything_in, body["messages"])).lower():
        raise argument(
            "messages",
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
        )
    if wanted["type"] != "json_schema":
        return None
    where = "response_format.json_schema"
    asked = wanted.get("json_schema")
    _check_keys(where, asked, ("name",), {"name", "description", "schema", "strict"})
    _check_name(f"{where}.name", asked["name"])
    schema: Mapping[str, Any] = asked.get("schema", {})
    fault = strict_fault(schema) if asked.get("strict") else schema_fault(schema)
    if fault:
        raise argument("response_format", f"Invalid schema for response_format '{asked['name']}': {fault}")
    return schema


def check_messages(messages: Any) -> int:
    """Check a conversation; gives the number of rounds of tool results.

    Raises:
        RefusedError: It is not as it should be.
    """
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects")
    waiting: list[str] = []
    may_answer: list[str] = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        _check_message(where, message)
        if message["role"] == "tool":
            if message["tool_call_id"] not in may_answer:
                said = "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
                raise argument(f"{where}.role", f"Invalid parameter: {said}")
            waiting = [one for one in waiting if one != message["tool_call_id"]]
            continue
        if waiting:
            raise argument("messages", UNANSWERED + ", ".join(waiting))
        waiting = may_answer = [call["id"] for call in blocks_of(message.get("tool_calls"))]
    if waiting:
        raise argument("messages", UNANSWERED + ", ".join(waiting))
    return rounds(messages)


def _check_message(where: str, message: Any) -> None:
    role = str(message.get("role")) if isinstance(message, dict) else "none"
    if role not in MESSAGE:
        raise argument(f"{where}.role", f"Invalid value for '{where}.role'.")
    _check_keys(where, message, ("tool_call_id",) if role == "tool" else (), MESSAGE[role])
    content = message.get("content")
    is_silent = role == "assistant" and (message.get("tool_calls") or message.get("refusal") is not None)
    if not isinstance(content, str | list) and not (content is None and is_silent):
        got = "null" if content is None else type(content).__name__
        raise argument(f"{where}.content", f"Invalid value for 'content': expected a string, got {got}.")
    if message.get("tool_calls") is None:
        return
    where = f"{where}.tool_calls"
    if not isinstance(message["tool_calls"], list):
        raise _wrong_type(where, "an array of objects")
    if not message["tool_calls"]:
        raise argument(
            where, f"Invalid '{where}': empty array. Expected an array with minimum length 1.", "empty_array"
        )
    for at, call in enumerate(message["tool_calls"]):
        _check_call(f"{where}[{at}]", call)


def _check_call(where: str, call: Any) -> None:
    _check_keys(where, call, ("id", "type", "function"), {"id", "type", "function"})
    if not isinstance(call["id"], str):
        raise _wrong_type(f"{where}.id", "a string")
    function = call["function"]
    _check_keys(f"{where}.function", function, ("name", "arguments"), {"name", "arguments"})
    if not isinstance(function["arguments"], str):
        raise _wrong_type(f"{where}.function.arguments", "a string")


def _check_name(where: str, name: Any) -> None:
    if not isinstance(name, str):
        raise _wrong_type(where, "a string")
    if not NAME.fullmatch(name):
        said = f"Invalid '{where}': string does not match pattern. Expected one that matches '^{NAME.pattern}$'."
        raise argument(where, said, "invalid_value")


def _check_keys(where: str, value: Any, required: Iterable[str], known: set[str]) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(where, "an object")
    if unknown := sorted(value.keys() - known):
        at = f"{where}.{unknown[0]}"
        raise argument(at, f"Unknown parameter: '{at}'.", "unknown_parameter")
    for name in required:
        if name not in value:
            at = f"{where}.{name}"
            raise argument(at, f"Missing required parameter: '{at}'.", "missing_required_parameter")


def _wrong_type(where: str, wanted: str) -> RefusedError:
    return argument(where, f"Invalid type for '{where}': expected {wanted}.", "invalid_type")
