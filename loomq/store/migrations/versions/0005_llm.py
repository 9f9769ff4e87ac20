"""Language models: what was asked and paid, tools' results, answers kept for others, changes of silos.

Revision ID: 0005
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables and a column, then the functions over them; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("tables", "journal"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0005_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: goals in flight may need what this adds."""
    raise NotImplementedError("goals in flight need this schema; restore a backup instead")
