"""What a worker raised, as the fault of its stage: a type users know, where it happened, and whether to retry."""

from __future__ import annotations

import copy
import traceback
from typing import Any

from loomq.errors import (
    LoomqError,
    PipelineStageError,
    PipelineTimeoutError,
    PipelineWorkerError,
    SoftDeadline,
)
from loomq.inline import storable_text
from loomq.redaction import redacted


def as_stage_error(error: Exception, stage: str, worker: str, timeout_s: float) -> PipelineStageError:
    """Turn whatever ended a stage into a ``PipelineStageError`` that names the stage and keeps the cause.

    Args:
        error: What was raised.
        timeout_s: The stage's soft deadline, for the text.
    """
    if isinstance(error, SoftDeadline):
        return PipelineTimeoutError(
            f"stage {stage} ran longer than its {timeout_s:g} s",
            stage=stage,
            hint="give it more with timeout_seconds, or less to do",
        )
    hint = getattr(error, "hint", None)
    if isinstance(error, PipelineStageError):
        found = copy.copy(error)  # not the same object: it is raised with the original as its cause
        text, found.stage = _text(error), getattr(error, "stage", "") or stage
        found.message = text if found.stage in text else f"stage {found.stage}: {text}"
        found.hint = _safe(hint) if hint else None
        found.args = (found.message,)
        return found
    retryable = bool(getattr(error, "retryable", isinstance(error, ConnectionError | TimeoutError)))
    message = _text(error) if isinstance(error, LoomqError) else f"{type(error).__name__}: {_text(error)}"
    fault = PipelineWorkerError(
        _safe(f"worker {worker} failed in stage {stage}: {message}"),
        stage=stage,
        hint=_safe(hint) if isinstance(hint, str) else None,
        retryable=retryable,
    )
    fault.detail = _where(error)
    return fault


def _text(error: BaseException) -> str:
    """Say what an exception says; a user's own may have no message, or fail to print itself."""
    try:
        return _safe(str(getattr(error, "message", None) or error))
    except Exception:  # noqa: BLE001
        return f"{type(error).__name__}, which cannot be printed"


def _safe(text: str) -> str:
    """Make a text fit to be kept; it is redacted before it is cut, or half a key could stand at the end."""
    return storable_text(redacted(text))


def _where(error: BaseException) -> dict[str, Any]:
    """Say what was raised at the root, and where."""
    root, seen = error, {id(error)}
    while root.__cause__ is not None and id(root.__cause__) not in seen:  # ``raise error from error`` is a circle
        root = root.__cause__
        seen.add(id(root))
    frames = traceback.extract_tb(root.__traceback__)
    found: dict[str, Any] = {"cause": _safe(f"{type(root).__name__}: {_text(root)}")}
    if frames:
        found["where"] = f"{frames[-1].filename}:{frames[-1].lineno}"
    return found
