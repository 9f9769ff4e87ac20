"""Orchestrators: goals whose plan is made on the way, rounds of tasks under a window, checkpoints.

Revision ID: 0006
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table and columns, then the functions over them; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("tables", "rounds"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0006_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: goals in flight may need what this adds."""
    raise NotImplementedError("goals in flight need this schema; restore a backup instead")
