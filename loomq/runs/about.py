"""What mappings, conditions and models may ask of a goal."""

from __future__ import annotations

from typing import Any


def about(row: Any) -> dict[str, Any]:
    """Describe a goal's row."""
    return {"goal_id": str(row.id), "instruction": row.instruction, "context": row.context}
