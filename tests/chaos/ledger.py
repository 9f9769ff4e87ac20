"""What really happened, told by witnesses outside of loomq: a file that the workers append to, triggers on the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The trigger sees each transition itself, so a second completion of a stage shows though its row keeps only one.
WITNESS = """
CREATE TABLE chaos_log (goal uuid, stage text, state text, token uuid, pid integer, node uuid, deliveries integer,
                        at double precision);
CREATE FUNCTION chaos_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_log VALUES (NEW.goal_id, NEW.name || coalesce(':' || nullif(NEW.item, -1), ''),
                                  NEW.state, NEW.token, NEW.pid, NEW.node, NEW.deliveries,
                                  extract(epoch FROM clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_witness AFTER UPDATE ON stages FOR EACH ROW
WHEN (NEW.state IN ('ready', 'claimed', 'done') AND (OLD.state, OLD.token, OLD.output) IS DISTINCT FROM
                                           (NEW.state, NEW.token, NEW.output))
EXECUTE FUNCTION chaos_witness();
"""


@dataclass
class Ledger:
    """All effects of a run, by (goal, stage).

    Args:
        starts: When each began, each time.
        finishes: How often each was finished.
        poisoned: How often a stage killed its own process.
        accepted: When its completion was accepted, each time.
        claims: When it was claimed, each time, with the claim's token.
        readied: When it became ready, each time.
    """

    starts: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    finishes: Counter[tuple[str, str]] = field(default_factory=Counter)
    poisoned: int = 0
    accepted: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    claims: dict[tuple[str, str], list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    readied: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, folder: Path, connection: Any) -> Ledger:
        """Read both witnesses."""
        found = cls()
        effects = folder / "effects"
        for line in effects.read_text().splitlines() if effects.exists() else ():
            goal, stage, what, at, _ = line.split()
            if what == "start":
                found.starts[goal, stage].append(float(at))
            elif what == "finish":
                found.finishes[goal, stage] += 1
            else:
                found.poisoned += 1
        for goal, stage, state, token, at in connection.execute(
            "SELECT goal, stage, state, token, at FROM chaos_log ORDER BY at"
        ):
            if state == "done":
                found.accepted[str(goal), stage].append(at)
            elif state == "ready":
                found.readied[str(goal), stage].append(at)
            else:
                found.claims[str(goal), stage].append((at, str(token)))
        return found

    def first_accept_after(self, at: float) -> float | None:
        """Say when the next completion of any stage was accepted."""
        return min((each for times in self.accepted.values() for each in times if each > at), default=None)
