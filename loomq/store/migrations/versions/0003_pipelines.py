"""Whole pipelines: skips, fan-out over items, sub-goals, fallbacks, pause, admission, events, sessions.

Revision ID: 0003
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and tables, then the functions over them; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("tables", "stages", "items", "failures", "goals", "fair"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0003_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: goals in flight may need what this adds."""
    raise NotImplementedError("goals in flight need this schema; restore a backup instead")
