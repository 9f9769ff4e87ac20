"""What a worker's YAML file may say of a tool (formats.md §1, §9)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from loomq.config import DottedName, Flag, Name, Spec


class ToolSilo(Spec):
    """A tool that the model may call."""

    name: Name
    type: Literal["tool"]
    provider: DottedName
    """Dotted path of a ToolProvider, built as cls(**config)."""
    config: dict[str, Any] = Field(default_factory=dict)
    required: Flag = True
    """Whether the task fails if it cannot be loaded; else the result names it in degraded_modes."""
