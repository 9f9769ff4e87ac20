"""What the environment says: one frozen object, read once from the project's file and ``LOOMQ_*`` variables.

A variable wins over ``loomq.toml``, which wins over the default. Importing this module opens nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from loomq.errors import ConfigError
from loomq.messages import ModelTier

PROJECT_MARKERS = ("loomq.toml", "workers", "pyproject.toml")
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
_SCHEMES = {
    "database_url": _POSTGRES,
    "listen_url": _POSTGRES,
    "broker_url": ("redis", "rediss", "amqp", "amqps", "pyamqp", "redis+socket", "sentinel"),
    "redis_url": REDIS_SCHEMES,
}
_LOOPBACK_HOSTS = {"localhost", "::1", ""}
_LOOPBACK_ADDRESS = re.compile(r"127(\.\d{1,3}){3}")


def find_project(start: Path | None = None) -> Path:
    """Find the project: the nearest folder upward with ``loomq.toml``, ``workers/`` or ``pyproject.toml``.

    Args:
        start: Where to begin; the current folder if not given.

    Returns:
        An absolute path; ``start`` itself if no folder upward has a marker.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if any((folder / marker).exists() for marker in PROJECT_MARKERS):
            return folder
    return here


class Settings(BaseSettings):
    """The settings of one process. Durations end in their unit; no field is read twice."""

    model_config = SettingsConfigDict(env_prefix="LOOMQ_", frozen=True, extra="forbid", env_ignore_empty=True)

    project: Path = Field(default_factory=find_project, description="The folder that holds workers/ and pipelines/.")
    data: Path | None = Field(None, description="Where embedded services keep their files; default: one a project.")
    database_url: str | None = Field(None, repr=False, description="postgresql://…; unset starts an embedded Postgres.")
    listen_url: str | None = Field(
        None, repr=False, description="A direct Postgres URL for LISTEN, when database_url is a pooler."
    )
    broker_url: str | None = Field(
        None, repr=False, description="redis://… or amqp://…; unset starts an embedded Redis."
    )
    redis_url: str | None = Field(
        None, repr=False, description="The Redis that holds rates and token budgets; default: the broker, if it is one."
    )
    insecure: bool = Field(False, description="Accept services off loopback without password and TLS.")
    import_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Packages that dotted names in YAML may come from, besides loomq.contrib."
    )
    tier: ModelTier | None = Field(
        None, description="Whose new queues a node takes when files are read again; `loomq worker --tier` sets it."
    )
    lease_seconds: float = Field(15.0, ge=0.5, le=3600)
    heartbeat_seconds: float = Field(1.0, gt=0, le=60)
    sweep_seconds: float = Field(1.0, gt=0, le=60)
    grace_seconds: float = Field(
        5.0, ge=0, le=600, description="From a stage's soft deadline to the end of its process."
    )
    shutdown_seconds: float = Field(
        10.0, ge=0, le=3600, description="How long a node that is told to stop finishes what it has in hand."
    )
    max_deliveries: int = Field(5, ge=1, le=100)
    window_per_slot: int = Field(8, ge=1, le=1000, description="Messages kept on a queue for each live slot.")
    window_min: int = Field(16, ge=1, le=100_000)
    straight_on: bool = Field(
        True,
        description="Whether a slot goes straight on with what is ready and its node serves, without a message for it.",
    )
    ageing_seconds: float = Field(
        60.0, ge=1, le=86_400, description="How long a task waits before it may go with the most urgent of its queue."
    )
    keep_goals_days: float = Field(30.0, ge=0, le=36_500, description="For how long `loomq prune` leaves ended goals.")
    keep_dead_letters_days: float = Field(90.0, ge=0, le=36_500, description="The same for goals with dead letters.")
    keep_dead_letters: int = Field(10_000, ge=0, description="How many dead letters it leaves: the newest.")
    embedded_linger_seconds: float = Field(3.0, ge=0, le=3600)
    redact_outputs: bool = Field(True, description="Hide what looks like a key in what workers give.")
    max_inline_bytes: int = Field(256 * 1024, ge=1024, le=16 * 1024 * 1024)
    log_level: str = "INFO"

    @field_validator("project", mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Path:
        return Path(value).expanduser().resolve()

    @field_validator("import_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (the signature is the library's)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then the project's ``loomq.toml``."""
        given = init_settings().get("project") or os.environ.get("LOOMQ_PROJECT")
        project = Path(given) if given else find_project()
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, project / "loomq.toml"))

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read and check the settings.

        Args:
            overrides: Values that win over the environment; ``None`` counts as not given.

        Raises:
            ConfigError: A value does not fit, or a service off loopback is not protected.
        """
        try:
            found = cls(**{key: value for key, value in overrides.items() if value is not None})
        except ValidationError as error:
            lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
            raise ConfigError(
                "the settings cannot be used: " + "; ".join(lines),
                hint="settings come from LOOMQ_* variables and the project's loomq.toml",
            ) from None
        except ValueError as error:
            raise ConfigError(f"loomq.toml cannot be read: {error}") from None
        for name, schemes in _SCHEMES.items():
            url = getattr(found, name)
            if url:
                _refuse_other_schemes(f"LOOMQ_{name.upper()}", url, schemes)
                if not found.insecure:
                    refuse_unprotected(f"LOOMQ_{name.upper()}", url)
        return found

    @property
    def workers_dir(self) -> Path:
        """Where worker files stand."""
        return self.project / "workers"

    @property
    def pipelines_dir(self) -> Path:
        """Where pipeline and orchestrator files stand."""
        return self.project / "pipelines"

    @property
    def schedules_dir(self) -> Path:
        """Where schedule files stand."""
        return self.project / "schedules"

    @property
    def router_rules_path(self) -> Path:
        """Where the router's rules stand, if there are any."""
        return self.project / "deploy" / "router_rules.yaml"


def _refuse_other_schemes(name: str, url: str, schemes: tuple[str, ...]) -> None:
    """Refuse what is not one of the services that loomq speaks to; a bare host would become some default's."""
    for part in url.split(";"):
        scheme, found, _ = part.partition("://")
        if not found or scheme not in schemes:
            shown = ", ".join(f"{each}://" for each in schemes[:3])
            raise ConfigError(f"{name} does not begin with {shown} …", hint=f"write it as {schemes[0]}://host/…")


def refuse_unprotected(name: str, url: str) -> None:
    """Refuse a service off loopback that has no password or no TLS (protocol.md, "Shared by several parts").

    Args:
        name: The setting that the URL comes from, for the error text.
        url: A Redis, AMQP or Postgres URL.

    Raises:
        ConfigError: The URL leaves this machine unprotected.
    """
    first, several, rest = url.partition(";")  # kombu takes several brokers, one to fail over to another
    if several:
        refuse_unprotected(name, first)
        refuse_unprotected(name, rest)
        return
    try:
        parts = urlsplit(url)
        host, query = parts.hostname or "", parse_qs(parts.query)
    except ValueError:  # whose text may hold the password
        raise ConfigError(
            f"{name} is not a URL", hint="write a / @ : # or [ in its password as %2F %40 %3A %23 %5B"
        ) from None
    host = query.get("host", [host])[0] or host
    places = [host, *query.get("hostaddr", [])]
    is_loopback = all(
        place in _LOOPBACK_HOSTS or place.startswith("/") or _LOOPBACK_ADDRESS.fullmatch(place) for place in places
    )
    if is_loopback or "socket" in parts.scheme or "unix" in parts.scheme:
        return
    missing = []
    if not (parts.password or query.get("password")):
        missing.append("a password")
    encrypted = parts.scheme in {"rediss", "amqps"} or query.get("sslmode", [""])[0] in {"verify-full", "verify-ca"}
    if not encrypted:
        missing.append("TLS (rediss://, amqps:// or sslmode=verify-full)")
    if missing:
        raise ConfigError(
            f"{name} points at {host} without {' and '.join(missing)}",
            hint="protect the service, or set LOOMQ_INSECURE=1 if the network itself is private",
        )
