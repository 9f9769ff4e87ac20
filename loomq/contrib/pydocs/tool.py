"""The index of Python's documentation as a tool that a language model may call."""

from __future__ import annotations

import json
from typing import Any

from loomq.contrib.pydocs.ask import Ask
from loomq.tools.base import SyncToolProvider

_TOLD = ("symbol", "citation", "text")


class SearchDocs(SyncToolProvider):
    """Find passages of the documentation of the running Python.

    Args:
        limit: How many passages to give.
    """

    def __init__(self, limit: int = 5) -> None:
        self._ask = Ask(limit)

    def get_definition(self) -> dict[str, Any]:
        """Describe the tool to the model."""
        return {
            "name": "search_docs",
            "description": "Search the documentation of Python's standard library and language. Gives passages, each"
            " with its symbol and its file:line.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 500,
                        "description": 'A few telling words; "quoted phrases" and a leading minus work.',
                    }
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        }

    def execute_sync(self, arguments: dict[str, Any]) -> str:
        """Search; errors as in ``Ask.process_sync``."""
        found = self._ask.process_sync({"question": arguments["query"]}, {})["output"]["passages"]
        return json.dumps([{key: passage[key] for key in _TOLD} for passage in found], ensure_ascii=False)
