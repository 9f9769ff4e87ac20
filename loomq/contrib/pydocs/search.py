"""Search: find the passages that speak of a question's words, by Postgres full-text search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.errors import UndefinedTable

from loomq.errors import BackendError

if TYPE_CHECKING:
    import psycopg

NOT_INDEXED = "the index of the Python documentation does not exist yet"
RUN_FIRST = "run this first: loomq fake-llm --extractive --unless-configured -- loomq run pydocs"

# Candidates for each passage that is given, since near duplicates are dropped.
_SPARE = 4
_CORPUS = """
SELECT corpus, root, passages FROM contrib_pydocs_corpora
WHERE coalesce(corpus = %(wanted)s, true) ORDER BY corpus = %(preferred)s DESC, indexed_at DESC LIMIT 1
"""
_QUERIES = """
SELECT websearch_to_tsquery('english', %(question)s)::text,
       replace(plainto_tsquery('english', %(question)s)::text, ' & ', ' | '),
       tsvector_to_array(to_tsvector('english', %(question)s))
"""
_FREQUENCIES = """
SELECT lexeme, (SELECT count(*) FROM contrib_pydocs_chunks
                WHERE corpus = %(corpus)s AND document @@ (quote_literal(lexeme))::tsquery)
FROM unnest(%(lexemes)s::text[]) AS lexeme
"""
_PASSAGES = """
WITH matching AS (
    SELECT chunk.*, ts_rank_cd(document, %(loose)s::tsquery, 1 | 32) AS rank,
           document @@ %(strict)s::tsquery AS every_word,
           (SELECT coalesce(sum(weight), 0)
            FROM unnest(%(lexemes)s::text[], %(weights)s::float8[]) AS word (lexeme, weight)
            WHERE lexeme = ANY (tsvector_to_array(document))) AS cover
    FROM contrib_pydocs_chunks AS chunk
    WHERE corpus = %(corpus)s AND document @@ %(query)s::tsquery
), scored AS (
    SELECT *, cover + 0.3 * rank - CASE WHEN symbol ~ '(^|[.])_[^_]' THEN 0.1 ELSE 0 END AS score FROM matching
)
SELECT symbol, package, file, line, twins, text, every_word, round(score::numeric, 3)::float8
FROM scored ORDER BY every_word DESC, score DESC, id LIMIT %(limit)s
"""
_WORDS = """
SELECT word, tsvector_to_array(to_tsvector('english', word)) FROM unnest(%(words)s::text[]) AS word
"""


@dataclass(frozen=True, slots=True)
class Corpus:
    """An indexed corpus; ``root`` is the folder that its files are relative to."""

    name: str
    root: str
    passages: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that matches.

    Args:
        twins: The number of its group of near duplicates, if it has any.
        every_word: Whether it holds all of the question's words, or only some.
        score: How much of the question it covers, a rare word counting more, and how close together; the names that
            a leading underscore calls private lose a little.
    """

    symbol: str
    package: str
    file: str
    line: int
    twins: int | None
    text: str
    every_word: bool
    score: float


def open_corpus(connection: psycopg.Connection, *, wanted: str | None, preferred: str) -> Corpus:
    """Choose a corpus: the one that is wanted, else the preferred one, else the newest.

    Raises:
        BackendError: Nothing is indexed, or not that.
    """
    try:
        row = connection.execute(_CORPUS, {"wanted": wanted, "preferred": preferred}).fetchone()
    except UndefinedTable as error:
        raise BackendError(NOT_INDEXED, hint=RUN_FIRST) from error
    if row is None:
        raise BackendError(NOT_INDEXED if wanted is None else f"{NOT_INDEXED} for {wanted}", hint=RUN_FIRST)
    return Corpus(*row)


def weigh(connection: psycopg.Connection, corpus: Corpus, question: str) -> dict[str, float]:
    """Stem the question's words as Postgres does, and weigh them by rarity; the weights add up to 1."""
    lexemes = _one(connection, _QUERIES, {"question": question})[2]
    rows = connection.execute(_FREQUENCIES, {"corpus": corpus.name, "lexemes": lexemes}).fetchall()
    weights = {lexeme: math.log(1 + corpus.passages / (1 + count)) for lexeme, count in rows}
    total = sum(weights.values())
    return {lexeme: weight / total for lexeme, weight in weights.items()}


def find(
    connection: psycopg.Connection, corpus: Corpus, question: str, weights: dict[str, float], limit: int
) -> list[Passage]:
    """Find the best passages, none of them a near duplicate of another.

    Those that hold every word come first; where they are too few, those that hold some follow.

    Args:
        connection: Left open.
        corpus: Where to look.
        question: Free text; quotes, ``or`` and a leading minus mean what they mean to a web search.
        weights: From ``weigh``.
        limit: The most passages to give.
    """
    strict, loose, _ = _one(connection, _QUERIES, {"question": question})
    if not weights:
        return []
    # Words that are ruled out must not come back by the loose query.
    query = strict if "!" in strict else f"({strict}) | {loose}"
    parameters = {"corpus": corpus.name, "query": query, "strict": strict, "loose": loose, "limit": limit * _SPARE}
    words = {"lexemes": list(weights), "weights": list(weights.values())}
    passages = [Passage(*row) for row in connection.execute(_PASSAGES, {**parameters, **words})]
    return _distinct(passages)[:limit]


def stems(connection: psycopg.Connection, words: set[str]) -> dict[str, list[str]]:
    """Say how Postgres stems each word; a word that it ignores has no stem."""
    return dict(connection.execute(_WORDS, {"words": sorted(words)}).fetchall())


def _one(connection: psycopg.Connection, statement: Any, parameters: dict[str, Any]) -> tuple[Any, ...]:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row


def _distinct(passages: list[Passage]) -> list[Passage]:
    kept: dict[Any, Passage] = {}
    for number, passage in enumerate(passages):
        kept.setdefault(("alone", number) if passage.twins is None else ("twins", passage.twins), passage)
    return list(kept.values())
