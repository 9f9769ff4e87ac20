"""Where a worker node puts malformed messages: written down at once, in batches, or held until Postgres is back."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections import deque
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from loomq.errors import EnvironmentNotReadyError
from loomq.ids import uuid7
from loomq.inline import storable_text
from loomq.redaction import excerpt, redacted_json
from loomq.store import malformed
from loomq.store.malformed import NewMalformed

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

FLUSH_S = 0.5
KEPT_BYTES = 256 * 1024
_BATCH = 50
_MOST = 1000
_MOST_BYTES = 32 * 2**20
_PATIENCE_S = 2.0
_LONGEST_PAUSE_S = 10.0
_READ_BYTES = 4096  # of a body, for the log
_PROPERTIES_CHARACTERS = 64 * 1024
_SHORT_CHARACTERS = 300  # of a property, with its name, that is kept by itself where not all can be
_MOST_SHORT = 100
_REASON_CHARACTERS = 1000
_LEVELS = 20
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")  # no secret can be recognised in it


class Quarantine:
    """Keep malformed messages of one node.

    The first is written at once; while more come, they are written every 0.5 s or by 50. Celery's parent process calls
    it from its event loop, so nothing here waits for Postgres longer than a few seconds, and hardly ever that long.

    Args:
        database: Where they are kept; no connection stays open.
    """

    def __init__(self, database: Database) -> None:
        self.node: UUID | None = None
        self._database = database
        self._held: deque[tuple[float, NewMalformed]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._due_at = 0.0
        self._pause_s = FLUSH_S
        self._writing = threading.Lock()

    def keep(
        self,
        queue: str,
        reason: str,
        body: bytes,
        properties: dict[str, Any],
        *,
        failure: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        """Take a message in.

        Args:
            body: Its bytes; the first 256 KB are kept.
            properties: Whatever is known of it, of any type.
            failure: The Celery task id and the result for whoever waits for it.
        """
        reason = told(reason)
        logger.warning('malformed message on queue "%s": %s; it reads: %s', queue, reason, _shown(body))
        kept = body[:KEPT_BYTES]
        if len(self._held) >= _MOST or self._bytes + len(kept) > _MOST_BYTES:
            self._dropped += 1
            logger.error(
                "it is dropped: %d others wait for Postgres; %d dropped so far", len(self._held), self._dropped
            )
            return
        described: dict[str, Any] = redacted_json({"size": len(body), **storable_properties(properties)})
        message = NewMalformed(
            uuid7(), storable_text(queue), storable_text(reason), kept, described, self.node, failure=failure
        )
        self._held.append((time.monotonic(), message))
        self._bytes += len(kept)
        if len(self._held) % _BATCH == 0 and self._pause_s == FLUSH_S:
            self._write()
        else:
            self.flush()

    def flush(self, *, at_once: bool = False) -> None:
        """Write what is held, if it is time; the worker's timer calls this every 0.5 s."""
        if self._held and (at_once or time.monotonic() >= self._due_at):
            self._write()

    def close(self) -> None:
        """Write what is held now; what cannot be written is lost with the process, and has been logged."""
        self._write(_LONGEST_PAUSE_S)
        if self._held or self._dropped:
            logger.error("%d malformed messages were not written down", len(self._held) + self._dropped)

    def _write(self, patience_s: float = _PATIENCE_S) -> None:
        if not self._writing.acquire(blocking=False):  # a green thread of the same process is at it
            return
        until = time.monotonic() + patience_s
        try:
            while self._held and time.monotonic() < until:
                batch = list(islice(self._held, _BATCH))
                now = time.monotonic()
                self._put([replace(message, age_s=now - seen) for seen, message in batch])
                for _, message in batch:
                    self._held.popleft()
                    self._bytes -= len(message.body)
            self._pause_s = FLUSH_S
        except Exception as error:  # noqa: BLE001  (whatever the database says, the worker goes on)
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
            text = error.message if isinstance(error, EnvironmentNotReadyError) else repr(error)
            logger.warning(
                "%d malformed messages are held, next try in %.0f s: %s", len(self._held), self._pause_s, text
            )
        finally:
            self._due_at = time.monotonic() + self._pause_s
            self._writing.release()

    def _put(self, messages: list[NewMalformed]) -> None:
        try:
            malformed.put_all(self._database, messages)
        except ValueError as error:
            if len(messages) == 1:
                self._dropped += 1
                logger.error("a malformed message cannot be written down: %s", error)  # noqa: TRY400
                return
            for message in messages:  # the others must not wait for it
                self._put([message])


def told(reason: str) -> str:
    """Make a reason fit for logs and rows: one line, without secrets, and what it quotes cannot steer a terminal."""
    return excerpt(_printable(reason), length=_REASON_CHARACTERS)


def storable_properties(properties: dict[str, Any]) -> dict[str, Any]:
    """Make a message's properties fit for ``jsonb``: its types, bounded in depth and size; what is cut says so."""
    clean: dict[str, Any] = _storable(properties, _LEVELS)
    text = json.dumps(clean)
    if len(text) <= _PROPERTIES_CHARACTERS:
        return clean
    short = ((key, value) for key, value in clean.items() if len(key) + len(str(value)) <= _SHORT_CHARACTERS)
    small = dict(islice(((key, value) for key, value in short if not isinstance(value, dict | list)), _MOST_SHORT))
    return {**small, "cut": storable_text(text)}


def _storable(value: Any, levels: int) -> Any:
    if isinstance(value, dict | list | tuple) and levels == 0:
        return "…"
    if isinstance(value, dict):
        return {storable_text(str(key)): _storable(each, levels - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(each, levels - 1) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return storable_text(str(value))


def _shown(body: bytes) -> str:
    """Quote the beginning of a body for the log, without what looks like a secret or may hide one."""
    text = body[:_READ_BYTES].decode("utf-8", "replace")
    return excerpt(_printable(_BASE64.sub("…", text)))


def _printable(text: str) -> str:
    """Replace what could steer a terminal or begin a line of its own."""
    flat = " ".join(text.split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in flat)
