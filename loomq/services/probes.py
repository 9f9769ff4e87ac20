"""A first look whether the user's own services answer at all, before anything slow is loaded."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from loomq.errors import BrokerUnavailableError, DatabaseUnavailableError

if TYPE_CHECKING:
    from loomq.settings import Settings

_PATIENCE_S = 1.0
_PORTS = {
    "postgresql": 5432,
    "postgres": 5432,
    "redis": 6379,
    "rediss": 6379,
    "valkey": 6379,
    "valkeys": 6379,
    "amqp": 5672,
    "pyamqp": 5672,
    "amqps": 5671,
}

Address = str | tuple[str, int]


def probe_database(settings: Settings) -> None:
    """Find out whether something listens where ``database_url`` points; an embedded one always passes.

    Raises:
        DatabaseUnavailableError: Nothing does.
    """
    if settings.database_url and (reason := _why_silent(settings.database_url)):
        raise DatabaseUnavailableError(
            f"Postgres at {without_password(settings.database_url)} does not answer: {reason}",
            hint="start it, correct LOOMQ_DATABASE_URL, or unset it to use the embedded Postgres",
        )


def probe_broker(settings: Settings) -> None:
    """Find out whether something listens where ``broker_url`` points; an embedded one always passes.

    Raises:
        BrokerUnavailableError: Nothing does.
    """
    if settings.broker_url and (reason := _why_silent(settings.broker_url)):
        raise BrokerUnavailableError(
            f"the broker at {without_password(settings.broker_url)} does not answer: {reason}",
            hint="start it, correct LOOMQ_BROKER_URL, or unset it to use the embedded one",
        )


def without_password(url: str) -> str:
    """Write a URL with ``***`` for its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:***@{place}").geturl()


def _why_silent(url: str) -> str | None:
    address = address_of(url)
    if address is None:
        return None
    try:
        if isinstance(address, str):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(_PATIENCE_S)
                client.connect(address)
        else:
            socket.create_connection(address, timeout=_PATIENCE_S).close()
    except TimeoutError:
        return f"no answer within {_PATIENCE_S:g} s"
    except socket.gaierror:
        return "no host has that name"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def address_of(url: str) -> Address | None:
    """Give the socket path, or host and port, that a service's URL means.

    Returns:
        ``None`` where only the service's own client knows: several hosts, sentinels, libpq's defaults.
    """
    try:
        parts = urlsplit(url)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        port = int(query.get("port") or parts.port or 0)
    except ValueError:
        return None
    scheme, _, transport = parts.scheme.partition("+")
    if transport == "socket":
        return unquote(parts.path)
    if scheme not in _PORTS:
        return None
    return _place(parts, query.get("host"), port or _PORTS[scheme])


def _place(parts: SplitResult, host: str | None, port: int) -> Address | None:
    name = host or parts.hostname or ""
    if name.startswith("/"):
        return f"{name}/.s.PGSQL.{port}"
    return (name, port) if name and "," not in parts.netloc + name else None
