"""Celery's events without secrets: monitors show what a task was called with, and how it failed."""

from __future__ import annotations

from typing import Any

from celery.app.events import Events
from celery.events import EventDispatcher

from loomq.redaction import redacted

_TEXTS = ("args", "kwargs", "result", "exception", "traceback")


class SafeDispatcher(EventDispatcher):  # type: ignore[misc]
    """Send events, with the texts of users and workers redacted."""

    def send(self, type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002  (the signature is Celery's)
        """Send one event."""
        for name in _TEXTS:
            if isinstance(fields.get(name), str):
                fields[name] = redacted(fields[name])
        return super().send(type, *args, **fields)


class SafeEvents(Events):  # type: ignore[misc]
    """The app's events."""

    dispatcher_cls = SafeDispatcher
