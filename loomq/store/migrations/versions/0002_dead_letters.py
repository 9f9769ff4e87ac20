"""Dead letters that can be replayed, malformed messages that are kept, and who did what to them.

Revision ID: 0002
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and columns, then the functions over them; those of 0001 stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("0002_tables.sql", "0002_functions.sql", "0002_sweep.sql"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / part).read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: what people have done to dead letters would be forgotten."""
    raise NotImplementedError("the audit trail cannot be taken back; restore a backup instead")
