"""What the environment and ``~/.loomq/config.yaml`` say of providers, keys and models; the environment wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from loomq.config import Spec, Text, load_spec
from loomq.errors import ConfigError
from loomq.problems import EXPLANATIONS
from loomq.redaction import know

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEY_BYTES = 64 * 1024
_LOOPBACK = {"localhost", "::1"}


class LLMFile(Spec):
    """``~/.loomq/config.yaml``: the variables' names in lower case."""

    ollama_url: Text | None = None
    ollama_model: Text | None = None
    anthropic_base_url: Text | None = None
    anthropic_version: Text | None = None
    anthropic_api_key: Text | None = None
    anthropic_api_key_file: Text | None = None
    anthropic_model: Text | None = None
    openai_base_url: Text | None = None
    openai_tokens_field: Text | None = None
    openai_api_key: Text | None = None
    openai_api_key_file: Text | None = None
    openai_model: Text | None = None
    local_backend: Text | None = None
    local_model: Text | None = None
    standard_backend: Text | None = None
    standard_model: Text | None = None
    frontier_backend: Text | None = None
    frontier_model: Text | None = None


#: The variables that are read.
NAMES = tuple(name.upper() for name in LLMFile.model_fields)


class LLMSettings:
    """The values by variable name.

    Args:
        sources: Where values come from, the strongest first; an empty text counts as not set.
    """

    def __init__(self, *sources: Mapping[str, str]) -> None:
        self._sources = [{name: source[name] for name in NAMES if source.get(name)} for source in sources]
        for source in self._sources:
            know(*keys_in(source))

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, home: Path | None = None) -> LLMSettings:
        """Read the environment and the user's file, if there is one.

        Args:
            environment: The process's own if not given.
            home: The folder that holds ``.loomq``; the user's if not given.

        Raises:
            ConfigError: The file has errors.
        """
        given = dict(os.environ if environment is None else environment)
        return cls(given, _file((home or Path.home()) / ".loomq" / "config.yaml"))

    def get(self, name: str) -> str | None:
        """Give a variable's value, or ``None`` if nothing says it."""
        return next((source[name] for source in self._sources if name in source), None)

    def secret(self, name: str) -> SecretStr | None:
        """Give a key: the variable itself, or the content of the file that ``<name>_FILE`` names.

        Raises:
            ConfigError: That file cannot be read.
        """
        for source in self._sources:
            if name in source:
                return SecretStr(source[name].strip())
            if f"{name}_FILE" in source:
                return _read_key(f"{name}_FILE", Path(source[f"{name}_FILE"]).expanduser())
        return None

    def url(self, name: str, default: str) -> str:
        """Give the address of a server, without a slash at the end.

        Raises:
            ConfigError: It is no ``http`` or ``https`` address, or carries a password or a query.
        """
        url = self.get(name) or default
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"{name} is not an http or https address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(f"{name} carries more than an address", hint="keys have variables of their own")
        return url.rstrip("/")


def keys_in(source: Mapping[str, str]) -> list[str]:
    """List the keys that variables hold."""
    return [source[name].strip() for name in NAMES if name.endswith("_API_KEY") and source.get(name)]


def is_loopback(url: str) -> bool:
    """Say whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def _file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    spec, problems = load_spec(path, LLMFile, name=str(path))
    if spec is None:
        # Neither line nor value is quoted, for either may hold a key.
        told = [
            f"{one.file}:{one.line}:{one.col}: {one.path or 'the file'}: {EXPLANATIONS[one.id]}" for one in problems
        ]
        raise ConfigError("; ".join(told), hint=f"it may say: {', '.join(LLMFile.model_fields)}")
    return {name.upper(): value for name, value in spec.model_dump(exclude_none=True).items()}


def _read_key(name: str, path: Path) -> SecretStr:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{name} names a file that cannot be read: {path} ({why})") from None
    if not text.strip():
        raise ConfigError(f"{name} names an empty file: {path}")
    know(text.strip())
    return SecretStr(text.strip())
