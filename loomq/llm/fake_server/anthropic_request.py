"""What the Messages API takes: tools, structured output, and conversations in which every tool call is answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.conversation import blocks_of
from loomq.llm.fake_server.schemas import anthropic_fault, schema_fault
from loomq.llm.fake_server.wire import RefusedError, digest, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
ROLES = ("user", "assistant", "system")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
#: The keys of the blocks that are checked, those that must be there first; other kinds pass as they are.
BLOCKS: dict[str, tuple[set[str], set[str]]] = {
    "text": ({"text"}, {"cache_control", "citations"}),
    "thinking": ({"thinking", "signature"}, set()),
    "redacted_thinking": ({"data"}, set()),
    "tool_use": ({"id", "input", "name"}, {"cache_control", "caller", "toolset_name"}),
    "tool_result": ({"tool_use_id"}, {"cache_control", "content", "is_error", "toolset_name"}),
}
OTHER_BLOCKS = {
    "image", "document", "search_result", "container_upload", "server_tool_use", "web_search_tool_result",
    "web_fetch_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result", "tool_search_tool_result",
}  # fmt: skip
#: Who may say a block, where not everybody may.
SPEAKERS = {"tool_use": "assistant", "thinking": "assistant", "redacted_thinking": "assistant", "tool_result": "user"}
TOOL = {
    "name", "description", "input_schema", "type", "cache_control", "strict", "allowed_callers", "defer_loading",
    "eager_input_streaming", "input_examples",
}  # fmt: skip
CHOICES = {
    "auto": {"type", "disable_parallel_tool_use"},
    "any": {"type", "disable_parallel_tool_use"},
    "tool": {"type", "name", "disable_parallel_tool_use"},
    "none": {"type"},
}
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_TOOL_USE_ID = re.compile(r"[a-zA-Z0-9_-]+")
_SERVER_TOOL = re.compile(r"\w+_\d{8}")


def error(status: int, message: str, code: str | None = None) -> RefusedError:
    """Make an error of the kind that goes with its status, unless ``code`` names another."""
    kind = code or KINDS.get(status) or ("api_error" if status >= 500 else KINDS[400])  # noqa: PLR2004
    found = {"type": kind, "message": message}
    return RefusedError(status, {"type": "error", "error": found, "request_id": new_id("req_")})


def signature(thinking: str) -> str:
    """Sign what the model says to itself, so that it is recognized when it comes back."""
    return digest(f"the fake server of loomq thought: {thinking}")


def check_tools(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the tools of a request; gives their names.

    Raises:
        RefusedError: They are not as they should be.
    """
    tools = body.get("tools", [])
    if not isinstance(tools, list):
        raise error(400, "tools: Input should be a valid list")
    for at, tool in enumerate(tools):
        _check_tool(f"tools.{at}", tool)
    names = tuple(str(tool["name"]) for tool in tools)
    if len(set(names)) < len(names):
        raise error(400, "tools: Tool names must be unique.")
    return names


def _check_tool(where: str, tool: Any) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else tool
    if kind not in (None, "custom"):
        if not _SERVER_TOOL.fullmatch(str(kind)) or "name" not in tool:
            raise error(400, f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        return
    where = f"{where}.custom"
    _check_keys(where, tool, ("name", "input_schema"), TOOL)
    if not isinstance(tool["name"], str) or not _TOOL_NAME.fullmatch(tool["name"]):
        raise error(400, f"{where}.name: String should match pattern '^{_TOOL_NAME.pattern}$'")
    if fault := schema_fault(tool["input_schema"]):
        raise error(400, f"{where}.input_schema: JSON schema is invalid. {fault}")
    if tool["input_schema"].get("type") != "object":
        raise error(400, f"{where}.input_schema.type: Input should be 'object'")
    if tool.get("strict") and (fault := anthropic_fault(tool["input_schema"])):
        raise error(400, f"{where}: {fault}")


def check_tool_choice(body: Mapping[str, Any], tools: Sequence[str]) -> str:
    """Check how tools are to be used; gives it as ``Call`` has it.

    Raises:
        RefusedError: It is not as it should be, or there are no tools.
    """
    choice = body.get("tool_choice")
    if choice is None:
        return "auto" if tools else "none"
    kind = str(choice.get("type")) if isinstance(choice, dict) else "none of all"
    if kind not in CHOICES:
        raise error(
            400, f"tool_choice: Input tag '{kind}' does not match any of the expected tags: {', '.join(CHOICES)}"
        )
    _check_keys(f"tool_choice.{kind}", choice, ("name",) if kind == "tool" else (), CHOICES[kind])
    if not tools:
        raise error(400, "tool_choice: tool_choice may only be specified while providing tools.")
    if kind == "tool" and choice["name"] not in tools:
        raise error(400, f"tool_choice: Tool '{choice['name']}' not found in provided tools")
    if kind in ("any", "tool") and (body.get("thinking") or {}).get("type", "disabled") != "disabled":
        raise error(400, "Thinking may not be enabled when tool_choice forces tool use.")
    return {"any": "required", "tool": str(choice.get("name"))}.get(kind, kind)


def check_output(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Check how the answer should look; gives the schema if there is one.

    Raises:
        RefusedError: It is not as it should be.
    """
    config = body.get("output_config")
    if config is None:
        return None
    _check_keys("output_config", config, (), {"effort", "format", "task_budget"})
    if config.get("effort") not in (None, *EFFORTS):
        raise error(400, f"output_config.effort: Input should be one of {', '.join(EFFORTS)}")
    wanted = config.get("format")
    if wanted is None:
        return None
    _check_keys("output_config.format", wanted, ("type", "schema"), {"type", "schema"})
    if wanted["type"] != "json_schema":
        raise error(400, "output_config.format.type: Input should be 'json_schema'")
    if fault := anthropic_fault(wanted["schema"]):
        raise error(400, f"output_config.format.schema: {fault}")
    found: Mapping[str, Any] = wanted["schema"]
    return found


def check_messages(messages: Any, *, has_tools: bool) -> int:
    """Check a conversation; gives the number of rounds of tool results.

    Raises:
        RefusedError: It is not as it should be.
    """
    if not isinstance(messages, list) or not messages:
        raise error(400, "messages: at least one message is required")
    for at, message in enumerate(messages):
        _check_message(f"messages.{at}", message)
    used = [_ids(message, "tool_use", "id") for message in messages]
    answered = [_ids(message, "tool_result", "tool_use_id") for message in messages]
    if any(used + answered) and not has_tools:
        raise error(400, "Requests which include `tool_use` or `tool_result` blocks must define tools.")
    everything = [one for ids in used for one in ids]
    if len(set(everything)) < len(everything):
        raise error(400, "messages: `tool_use` ids must be unique")
    for at, message in enumerate(messages):
        _check_results(at, message, used[at - 1] if at else [])
        _check_uses(at, used[at], messages[at + 1 : at + 2])
    return sum(map(bool, answered))


def _check_message(where: str, message: Any) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise error(400, f"{where}.role: Input should be 'user', 'assistant' or 'system'")
    _check_keys(where, message, ("content",), {"role", "content"})
    content = message["content"]
    if not isinstance(content, str | list):
        raise error(400, f"{where}.content: Input should be a valid string or list")
    if not content:
        raise error(400, f"{where}: all messages must have non-empty content")
    for at, block in enumerate(content if isinstance(content, list) else []):
        _check_block(f"{where}.content.{at}", block, message["role"])


def _check_block(where: str, block: Any, role: str) -> None:
    kind = str(block.get("type")) if isinstance(block, dict) else "none"
    if kind in OTHER_BLOCKS:
        return
    if kind not in BLOCKS:
        raise error(400, f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
    required, more = BLOCKS[kind]
    _check_keys(f"{where}.{kind}", block, sorted(required), {"type"} | required | more)
    if SPEAKERS.get(kind, role) != role:
        raise error(400, f"{where}: `{kind}` blocks can only be in `{SPEAKERS[kind]}` messages")
    if kind == "text" and not block["text"]:
        raise error(400, "messages: text content blocks must be non-empty")
    if kind == "thinking" and block["signature"] != signature(block["thinking"]):
        raise error(400, f"{where}: Invalid `signature` in `thinking` block")
    if kind == "redacted_thinking":
        raise error(400, f"{where}: Invalid `data` in `redacted_thinking` block")
    if kind == "tool_use" and not isinstance(block["input"], dict):
        raise error(400, f"{where}.tool_use.input: Input should be a valid dictionary")
    for name in {"id", "tool_use_id"} & block.keys():
        if not isinstance(block[name], str) or not _TOOL_USE_ID.fullmatch(block[name]):
            raise error(400, f"{where}.{kind}.{name}: String should match pattern '^{_TOOL_USE_ID.pattern}$'")


def _check_results(at: int, message: Mapping[str, Any], used: Sequence[str]) -> None:
    """Refuse results that nobody asked for in the message before."""
    for number, block in enumerate(blocks_of(message["content"])):
        if block["type"] == "tool_result" and block["tool_use_id"] not in used:
            raise error(
                400,
                f"messages.{at}.content.{number}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{block['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use` block in the "
                "previous message.",
            )


def _check_uses(at: int, used: Sequence[str], following: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tool calls without a result that opens the next message; other blocks come after the results."""
    opening = []
    for block in blocks_of(following[0]["content"]) if following else []:
        if block["type"] != "tool_result":
            break
        opening.append(block["tool_use_id"])
    if missing := [one for one in used if one not in opening]:
        raise error(
            400,
            f"messages.{at}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message.",
        )


def _ids(message: Mapping[str, Any], kind: str, key: str) -> list[str]:
    return [block[key] for block in blocks_of(message["content"]) if block["type"] == kind]


def _check_keys(where: str, value: Any, required: Iterable[str], known: set[str]) -> None:
    if not isinstance(value, dict):
        raise error(400, f"{where}: Input should be a valid dictionary or object")
    for name in required:
        if name not in value:
            raise error(400, f"{where}.{name}: Field required")
    if unknown := sorted(value.keys() - known):
        raise error(400, f"{where}.{unknown[0]}: Extra inputs are not permitted")
