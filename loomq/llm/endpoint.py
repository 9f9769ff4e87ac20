"""One provider's address and key: JSON out, a checked model back, and every failure classified in one place."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from loomq.errors import (
    ConfigError,
    LLMAnswerError,
    LLMError,
    LLMRateLimitError,
    LLMRefusedError,
    LLMUnavailableError,
)
from loomq.problems import dotted
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loomq.llm.http import HttpPool, Response

LONGEST_RETRY_AFTER_S = 3600.0
_MAX_SHOWN = 3

# Request timeout, lock timeout (both official clients repeat it), and whatever a server says of itself.
_TRANSIENT = {408, 409}
_OUT_OF_MONEY = {"insufficient_quota", "billing_error", "billing_hard_limit_reached"}
_TOO_LONG = ("context_length_exceeded", "prompt is too long", "context length", "context window", "context size")
_FILTERED = {"content_filter", "content_policy_violation"}
_STRUCTURED = ("output_config", "response_format", "json_schema", "output_format", "structured output")
_OVERLOADED = {"overloaded_error", "overloaded", "engine_overloaded"}


class Wire(BaseModel):
    """A part of a response: what we use is checked strictly, what we do not know is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


W = TypeVar("W", bound=Wire)
Tokens = Annotated[int, Field(ge=0, le=10**12)]


@dataclass(frozen=True)
class Endpoint:
    """Where a provider is, and who we are there.

    Args:
        provider: Its name in error texts.
        base_url: Without a slash at the end.
        key: ``None`` for servers that ask for none.
        key_name: The variable that the key comes from, for hints.
        key_header: ``authorization`` sends it as a bearer token, anything else as it is.
        headers: What every request carries besides.
    """

    pool: HttpPool
    provider: str
    base_url: str
    key: SecretStr | None = None
    key_name: str = ""
    key_header: str = "authorization"
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = self.key.get_secret_value() if self.key else "-"
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(f"{self.key_name} holds characters that no key has", hint="is it quoted, or two lines?")

    async def post(self, path: str, body: Mapping[str, Any], model: type[W], timeout_s: float) -> W:
        """Send an object and read another.

        Raises:
            LLMError: Or the subclass that says why it failed.
        """
        response = await self._send("POST", path, _written(body), timeout_s)
        return self.parsed(response.body.decode("utf-8", "replace"), model)

    async def get(self, path: str, model: type[W], timeout_s: float) -> W:
        """Read an object; errors as for ``post``."""
        response = await self._send("GET", path, None, timeout_s)
        return self.parsed(response.body.decode("utf-8", "replace"), model)

    async def stream(
        self, path: str, body: Mapping[str, Any], sink: Callable[[dict[str, Any]], None], timeout_s: float
    ) -> None:
        """Send an object, and hand on each event of the response when it comes: lines of JSON, or server-sent events.

        Raises:
            LLMError: As ``post``; also for an error that the provider reports in the stream.
        """

        def hear(line: bytes) -> None:
            text = line.decode("utf-8", "replace").strip()
            if text.startswith("data:"):
                text = text[5:].strip()
            elif not text.startswith("{"):
                return  # the event's name, which its data repeat, an empty line, or a comment
            if text == "[DONE]":
                return
            event = self._event(text)
            try:
                sink(event)
            except (AttributeError, TypeError, ValueError):
                raise self._malformed_event(text) from None

        await self._send("POST", path, _written(body), timeout_s, hear)

    def _event(self, text: str) -> dict[str, Any]:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise self._malformed_event(text)
        if event.get("error"):
            told, codes = _told(text.encode())
            raise self._fault_of(_status_of(codes), told, codes, {})
        return event

    def _malformed_event(self, text: str) -> LLMAnswerError:
        told = excerpt(text, *self._secrets)
        return LLMAnswerError(f"the stream of {self.provider} is malformed; a part of it: {told}")

    def broken_off(self) -> LLMUnavailableError:
        """Make the error for a stream that ended before the reply did."""
        return LLMUnavailableError(f"{self.provider} broke off in the middle of its reply", kind="connection")

    @property
    def _secrets(self) -> tuple[str, ...]:
        return (self.key.get_secret_value(),) if self.key else ()

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Response:
        headers = dict(self.headers)
        if body is not None:
            headers["content-type"] = "application/json"
        if self.key is not None:
            value = self.key.get_secret_value()
            headers[self.key_header] = f"Bearer {value}" if self.key_header == "authorization" else value
        response = await self.pool.send(
            method,
            self.base_url + path,
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            provider=self.provider,
            secrets=self._secrets,
            on_line=on_line,
        )
        if response.status != 200:  # noqa: PLR2004
            told, codes = _told(response.body)
            raise self._fault_of(response.status, told, codes, response.headers)
        return response

    def parsed(self, text: str, model: type[W]) -> W:
        """Check an object.

        Raises:
            LLMAnswerError: It is not what it should be.
        """
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(f"{dotted(fault['loc']) or 'body'}: {fault['msg']}" for fault in faults[:_MAX_SHOWN])
        raise LLMAnswerError(
            f"the response of {self.provider} is malformed ({excerpt(told, *self._secrets)});"
            f" it begins: {excerpt(text, *self._secrets)}"
        )

    def _fault_of(self, status: int, told: str, codes: set[str], headers: Mapping[str, str]) -> LLMError:
        """Turn an error of the provider into the one that says what it is, and whether to try again."""
        message = f"{self.provider} answered {status}: {excerpt(told, *self._secrets) or '(nothing)'}"
        wait_s = retry_after_s(headers)
        if codes & _OUT_OF_MONEY or status == 402:  # noqa: PLR2004
            hint = f"the account behind {self.key_name} has no credit left"
            return LLMError(message, hint=hint, kind="quota")
        if codes & _FILTERED:
            return LLMRefusedError(message, kind="content_filter")
        fault: LLMError
        if status == 429:  # noqa: PLR2004
            fault = LLMRateLimitError(message, retry_after_s=wait_s)
        elif status in _TRANSIENT or status >= 500:  # noqa: PLR2004
            fault = LLMUnavailableError(message, retry_after_s=wait_s, kind=_outage(status, codes))
        else:
            return LLMError(message, hint=self._hint(status, told, codes), kind=_kind(status, told, codes))
        if headers.get("x-should-retry") == "false":
            fault.retryable = False
        return fault

    def _hint(self, status: int, told: str, codes: set[str]) -> str | None:
        if status in (401, 403):
            return f"check {self.key_name}" if self.key_name else None
        if 300 <= status < 400:  # noqa: PLR2004
            return f"redirects are not followed; is {self.base_url} the right address?"
        if _kind(status, told, codes) == "context_overflow":
            return "send less: max_input_tokens refuses such a prompt before it is paid for"
        if status == 404:  # noqa: PLR2004
            return f"the model or the address {self.base_url} is wrong; loomq doctor lists the provider's models"
        return None


def _written(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _outage(status: int, codes: set[str]) -> str:
    if status in (503, 529) or codes & _OVERLOADED:
        return "overloaded"
    return "timeout" if status in (408, 504) else "server"


def _kind(status: int, told: str, codes: set[str]) -> str:
    """Say what is wrong with a call that the provider does not take."""
    lower = told.lower()
    if status in (401, 403):
        return "auth"
    if status == 413 or any(sign in lower or sign in codes for sign in _TOO_LONG):  # noqa: PLR2004
        return "context_overflow"
    if any(sign in lower for sign in _STRUCTURED):
        return "structured_output"
    return "request"


def _status_of(codes: set[str]) -> int:
    """Give the status that an error within a stream would have had by itself; what is unknown may pass."""
    if codes & _OVERLOADED:
        return 529
    if "rate_limit_error" in codes or "rate_limit_exceeded" in codes:
        return 429
    return 400 if "invalid_request_error" in codes else 500


def _told(body: bytes) -> tuple[str, set[str]]:
    """Find the message and the codes in an error body of any wire; text that is none of them is its own message."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text, set()
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return str(error), set()
    codes = {str(error[key]) for key in ("type", "code") if error.get(key)}
    message = error.get("message") or error.get("detail") or text
    return str(message), codes


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read how long to wait: ``retry-after-ms``, or ``retry-after`` in seconds or as a date.

    Args:
        headers: By lower-case name.

    Returns:
        Seconds, at most an hour; ``None`` if the headers do not say.
    """
    found = _number(headers.get("retry-after-ms"), 0.001)
    if found is None:
        found = _number(headers.get("retry-after"), 1.0)
    if found is None and (date := email.utils.parsedate_tz(headers.get("retry-after", ""))):
        with contextlib.suppress(ValueError, OverflowError):  # a year that no calendar has
            found = email.utils.mktime_tz(date) - time.time()
    return None if found is None else min(max(found, 0.0), LONGEST_RETRY_AFTER_S)


def _number(text: str | None, unit: float) -> float | None:
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found * unit if math.isfinite(found) else None
