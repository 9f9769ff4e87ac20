"""What the environment and ``~/.loomq/config.yaml`` say of providers, keys and models; the environment wins."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from loomq.config import Seconds, Spec, Text, load_spec
from loomq.errors import ConfigError
from loomq.llm.pricing import PriceEntry, PriceTable
from loomq.problems import EXPLANATIONS
from loomq.redaction import know

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEY_BYTES = 64 * 1024
_LOOPBACK = {"localhost", "::1"}


class LLMFile(Spec):
    """``~/.loomq/config.yaml``: the variables' names in lower case, and what models cost."""

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
    local_fallbacks: Text | None = None
    local_timeout_seconds: Seconds | None = None
    standard_backend: Text | None = None
    standard_model: Text | None = None
    standard_fallbacks: Text | None = None
    standard_timeout_seconds: Seconds | None = None
    frontier_backend: Text | None = None
    frontier_model: Text | None = None
    frontier_fallbacks: Text | None = None
    frontier_timeout_seconds: Seconds | None = None
    structured_output: Text | None = None
    embedding_backend: Text | None = None
    embedding_model: Text | None = None
    prices: dict[str, PriceEntry] = Field(default_factory=dict)


#: The variables that are read.
NAMES = tuple(name.upper() for name in LLMFile.model_fields if name != "prices")


class LLMSettings:
    """The values by variable name.

    Args:
        sources: Where values come from, the strongest first; an empty text counts as not set.
        prices: What models cost, by their names; it wins over the prices that loomq knows.
    """

    def __init__(self, *sources: Mapping[str, str], prices: Mapping[str, PriceEntry] | None = None) -> None:
        self.prices = dict(prices or {})
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
        file = _file((home or Path.home()) / ".loomq" / "config.yaml")
        PriceTable(file.prices)  # a name that can never match is told now, and not when a call has been paid for
        said = file.model_dump(exclude_none=True, exclude={"prices"})
        return cls(given, {name.upper(): f"{value}" for name, value in said.items()}, prices=file.prices)

    def get(self, name: str) -> str | None:
        """Give a variable's value, or ``None`` if nothing says it."""
        return next((source[name] for source in self._sources if name in source), None)

    def seconds(self, name: str) -> float | None:
        """Give a duration, or ``None`` if nothing says it.

        Raises:
            ConfigError: It is none.
        """
        said = self.get(name)
        try:
            found = None if said is None else float(said)
        except ValueError:
            found = 0.0
        if found is not None and not 0 < found < math.inf:
            raise ConfigError(f'{name} is no number of seconds: "{said}"', hint=f"{name}=30, or leave it out")
        return found

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

    def key(self, who: str, url: str, *, needed: bool, insecure: bool) -> SecretStr | None:
        """Give the key of a provider; ``None`` if there is none and none is needed.

        Args:
            who: The provider as its variables begin.
            url: Where the key would be sent.
            insecure: Whether it may travel unencrypted to another machine.

        Raises:
            ConfigError: It is missing, cannot be read, or would travel in the clear.
        """
        found = self.secret(f"{who}_API_KEY")
        if found is None and needed:
            raise ConfigError(f"{who}_API_KEY is not set", hint=f"set it, or {who}_API_KEY_FILE to the file it is in")
        if found is not None and url.startswith("http://") and not is_loopback(url) and not insecure:
            raise ConfigError(
                f"{who}_BASE_URL would send {who}_API_KEY unencrypted to another machine",
                hint="use https, or set LOOMQ_INSECURE=1 if the network itself is private",
            )
        return found

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


def _file(path: Path) -> LLMFile:
    if not path.is_file():
        return LLMFile()
    spec, problems = load_spec(path, LLMFile, name=str(path))
    if spec is None:
        # Neither line nor value is quoted, for either may hold a key.
        told = [
            f"{one.file}:{one.line}:{one.col}: {one.path or 'the file'}: {EXPLANATIONS[one.id]}" for one in problems
        ]
        raise ConfigError("; ".join(told), hint=f"it may say: {', '.join(LLMFile.model_fields)}")
    return spec


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
