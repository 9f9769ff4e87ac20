"""Limits over the whole cluster, turns of goals within a priority, and what waits long goes first.

Revision ID: 0004
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, indexes and tables, then the functions over them; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("tables", "turns", "limits", "stages"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0004_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: goals in flight may need what this adds."""
    raise NotImplementedError("goals in flight need this schema; restore a backup instead")
