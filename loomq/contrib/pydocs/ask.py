"""Ask: answer a question with sentences of the documentation, each with its file and line."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import connection
from loomq.contrib.pydocs.search import Passage, find, open_corpus, stems, weigh
from loomq.errors import BackendError
from loomq.llm.fake_server.prose import is_prose, sentences
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL = "full-text search (extractive, not an LLM)"
MAX_SENTENCE = 300
QUOTED = 3

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_PROSE_BONUS = 1.0
_UNKNOWN = "Nothing in the documentation speaks of that."


class Ask(SyncProcessingBackend):
    """Find the passages that answer best and quote the sentence that matters in each.

    Args:
        limit: How many passages to give.
    """

    def __init__(self, limit: int = 5) -> None:
        self._limit = limit

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Answer ``question`` from ``corpus``, or from the running Python's if none is named.

        Raises:
            BackendError: The index does not exist yet, or the question is empty.
            TransientBackendError: Postgres is out of reach.
        """
        question = " ".join(payload["question"].replace("\0", " ").split())
        if not question:
            raise BackendError("the question is empty")
        preferred = f"python-{platform.python_version()}"
        with connection() as opened:
            corpus = open_corpus(opened, wanted=payload.get("corpus"), preferred=preferred)
            weights = weigh(opened, corpus, question)
            passages = find(opened, corpus, question, weights, payload.get("limit", self._limit))
            stemmed = stems(opened, {token for passage in passages for token in _TOKEN.findall(passage.text)})
        worth = {token: sum(weights.get(stem, 0) for stem in found) for token, found in stemmed.items()}
        quotes = [_quote(passage, worth) for passage in passages]
        output = {
            "question": question,
            "answer": _answer(quotes),
            "passages": quotes,
            "every_word_found": bool(passages) and passages[0].every_word,
            "corpus": corpus.name,
            "root": corpus.root,
        }
        return {"output": output, "model_used": MODEL}


def _quote(passage: Passage, worth: Mapping[str, float]) -> dict[str, Any]:
    """Describe a passage and its best sentence, with the places of the question's words in it.

    Args:
        passage: What was found.
        worth: For each token of the passages how much of the question it is, from 0 to 1.
    """
    spans = list(sentences(passage.text))
    start, end = max(spans, key=lambda span: _weight(passage.text[slice(*span)], worth))
    line = passage.line + passage.text.count("\n", 0, start)
    sentence = _shortened(" ".join(passage.text[start:end].split()))
    return {
        "symbol": passage.symbol,
        "package": passage.package,
        "citation": f"{passage.file}:{line}",
        "file": passage.file,
        "line": line,
        "sentence": sentence,
        "highlights": [[hit.start(), hit.end()] for hit in _TOKEN.finditer(sentence) if worth.get(hit.group())],
        "text": passage.text,
        "every_word": passage.every_word,
        "weight": round(_weight(passage.text[start:end], worth), 3),
        "score": passage.score,
    }


def _weight(sentence: str, worth: Mapping[str, float]) -> float:
    # Spelled in two ways, a word counts twice; that is rare in one sentence and does no harm.
    held = sum(worth[token] for token in {token.lower(): token for token in _TOKEN.findall(sentence)}.values())
    return held * (1 + _PROSE_BONUS * is_prose(sentence))


def _answer(quotes: list[dict[str, Any]]) -> str:
    if not quotes:
        return _UNKNOWN
    full = [quote for quote in quotes if quote["every_word"]] or quotes
    told = sorted(full, key=lambda quote: -quote["weight"])
    return "\n".join(f"{quote['sentence']} [{quote['symbol']}, {quote['citation']}]" for quote in told[:QUOTED])


def _shortened(sentence: str) -> str:
    if len(sentence) <= MAX_SENTENCE:
        return sentence
    return sentence[:MAX_SENTENCE].rpartition(" ")[0] + " …"
