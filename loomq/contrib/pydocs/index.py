"""Index: load the passages into a full-text index in Postgres, one corpus a Python version."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import connection, workspace
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from loomq.workspace import WorkspaceManager

# Part of the digest: a new layout loads every corpus again.
LAYOUT = "1"
# Two loads at a time would collide in CREATE TABLE IF NOT EXISTS and in each other's rows.
LOCK = "SELECT pg_advisory_xact_lock(hashtext('contrib_pydocs'))"
TABLES = """
CREATE TABLE IF NOT EXISTS contrib_pydocs_corpora (
    corpus text PRIMARY KEY,
    digest text NOT NULL,
    root text NOT NULL,
    passages integer NOT NULL,
    indexed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS contrib_pydocs_chunks (
    corpus text NOT NULL REFERENCES contrib_pydocs_corpora ON DELETE CASCADE,
    id text NOT NULL,
    package text NOT NULL,
    symbol text NOT NULL,
    file text NOT NULL,
    line integer NOT NULL,
    twins integer,
    names text NOT NULL,
    text text NOT NULL,
    document tsvector NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('english', names), 'A') || setweight(to_tsvector('english', text), 'B')
    ) STORED,
    PRIMARY KEY (corpus, id)
);
"""
SEARCH_INDEX = """
CREATE INDEX IF NOT EXISTS contrib_pydocs_chunks_document
    ON contrib_pydocs_chunks USING gin (document) WITH (fastupdate = off)
"""
SAME = "SELECT passages FROM contrib_pydocs_corpora WHERE corpus = %s AND digest = %s"
COLUMNS = "corpus, id, package, symbol, file, line, twins, names, text"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^A-Za-z0-9]+")


class Index(SyncProcessingBackend):
    """Replace one corpus in the index, whole or not at all; the same text is not loaded again."""

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Load the passages in one transaction, in which questions still see the corpus of before.

        Raises:
            TransientBackendError: Postgres is out of reach.
        """
        space = workspace()
        corpus = f"python-{payload['python']}"
        digest = _digest(space, payload["root"], payload["chunks_ref"], payload["groups_ref"])
        with connection() as opened, opened.cursor() as cursor:
            cursor.execute(LOCK)
            cursor.execute(TABLES)
            cursor.execute(SAME, [corpus, digest])
            same = cursor.fetchone()
            passages = same[0] if same else _load(cursor, space, payload, corpus, digest)
        output = {"corpus": corpus, "passages": passages, "loaded": same is None, "table": "contrib_pydocs_chunks"}
        return {"output": output, "model_used": None}


def spoken_name(symbol: str) -> str:
    """Split a symbol into the words that people ask for: ``ftplib.FTP.makePort`` also says make and port."""
    plain = _SEPARATORS.sub(" ", symbol)
    parts = _CAMEL.sub(" ", plain)
    return plain if parts == plain else f"{plain} {parts}"


def _digest(space: WorkspaceManager, root: str, *refs: str) -> str:
    digest = hashlib.sha256(f"{LAYOUT}\0{root}".encode())
    for ref in refs:
        with space.open_read(ref) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load(
    cursor: psycopg.Cursor[Any], space: WorkspaceManager, payload: Mapping[str, Any], corpus: str, digest: str
) -> int:
    groups = space.read_json(payload["groups_ref"])
    twins = {member["id"]: number for number, group in enumerate(groups) for member in group["members"]}
    cursor.execute("DELETE FROM contrib_pydocs_corpora WHERE corpus = %s", [corpus])
    cursor.execute(
        "INSERT INTO contrib_pydocs_corpora (corpus, digest, root, passages) VALUES (%s, %s, %s, 0)",
        [corpus, digest, payload["root"]],
    )
    passages = 0
    with cursor.copy(f"COPY contrib_pydocs_chunks ({COLUMNS}) FROM STDIN") as copy:
        for chunk in read_records(space, payload["chunks_ref"], Chunk):
            names = spoken_name(chunk.symbol)
            place = (chunk.package, chunk.symbol, chunk.file, chunk.line)
            copy.write_row((corpus, chunk.id, *place, twins.get(chunk.id), names, chunk.text))
            passages += 1
    cursor.execute("UPDATE contrib_pydocs_corpora SET passages = %s WHERE corpus = %s", [passages, corpus])
    cursor.execute(SEARCH_INDEX)
    cursor.execute("ANALYZE contrib_pydocs_chunks")
    return passages
