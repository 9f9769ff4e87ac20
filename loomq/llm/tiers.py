"""Which backend serves which tier: what the user named, else the first provider that is configured.

A tier's provider is ``<TIER>_BACKEND`` (``ollama``, ``anthropic`` or ``openai``). Without it ``local`` is Ollama, or an
OpenAI-compatible server on this machine; ``standard`` and ``frontier`` are Anthropic, OpenAI or Ollama, the first that
has a key or an address. Its model is ``<TIER>_MODEL``, else ``<PROVIDER>_MODEL``; no model is built in.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, get_args

from loomq.errors import ConfigError
from loomq.llm import anthropic, ollama, openai
from loomq.llm.settings import LLMSettings, is_loopback
from loomq.messages import ModelTier
from loomq.problems import suggest

if TYPE_CHECKING:
    from pydantic import SecretStr

    from loomq.llm.base import LLMBackend
    from loomq.llm.http import HttpPool

PROVIDERS = ("anthropic", "openai", "ollama")
WITHOUT_A_MODEL = "to go on without a model: loomq fake-llm --extractive --unless-configured -- COMMAND"


class Tiers:
    """The backends of one process.

    Args:
        pool: Its connections.
        settings: What the user configured; read on first use if not given.
        insecure: Accept a key that would travel unencrypted to another machine.
    """

    def __init__(self, pool: HttpPool, settings: LLMSettings | None = None, *, insecure: bool = False) -> None:
        self._pool = pool
        self._given = settings
        self._insecure = insecure
        self._backends: dict[str, LLMBackend] = {}

    @cached_property
    def settings(self) -> LLMSettings:
        """What the user configured."""
        return self._given or LLMSettings.load()

    def backend(self, tier: str) -> LLMBackend:
        """Give the backend that serves a tier.

        Raises:
            ConfigError: No provider or no model is configured, or what is configured cannot be used.
        """
        if tier not in self._backends:
            provider = self.provider(tier)
            names = (f"{tier.upper()}_MODEL", f"{provider.upper()}_MODEL")
            model = next((found for name in names if (found := self.settings.get(name))), None)
            if model is None:
                raise ConfigError(
                    f"tier {tier} is served by {provider}, and no model is named: set {' or '.join(names)}",
                    hint=f"loomq doctor lists the models that {provider} offers\n{WITHOUT_A_MODEL}",
                )
            self._backends[tier] = self.connect(provider, model)
        return self._backends[tier]

    def provider(self, tier: str) -> str:
        """Name the provider that serves a tier.

        Raises:
            ConfigError: None is configured, or the name is unknown.
        """
        name = f"{tier.upper()}_BACKEND"
        asked = self.settings.get(name)
        if asked is not None:
            if asked not in PROVIDERS:
                hint = suggest(asked, PROVIDERS) or f"it is one of {', '.join(PROVIDERS)}"
                raise ConfigError(f'{name} names no provider: "{asked}"', hint=hint)
            return asked
        if tier == ModelTier.LOCAL:
            return self._local()
        found = self.configured
        if not found:
            raise ConfigError(
                f"no language model is configured, so nothing serves tier {tier}",
                hint="set ANTHROPIC_API_KEY, OPENAI_API_KEY, OPENAI_BASE_URL or OLLAMA_URL, and a model\n"
                + WITHOUT_A_MODEL,
            )
        return found[0]

    def _local(self) -> str:
        """What is called local stays on this machine unless the user says otherwise."""
        get = self.settings.get
        url = get("OPENAI_BASE_URL")
        if not (get("OLLAMA_URL") or get("OLLAMA_MODEL")) and url and is_loopback(url):
            return "openai"
        return "ollama"

    @property
    def configured(self) -> list[str]:
        """The providers that have a key or an address."""
        get, names = self.settings.get, ("API_KEY", "API_KEY_FILE")
        signs = {
            "anthropic": any(get(f"ANTHROPIC_{name}") for name in names),
            "openai": any(get(f"OPENAI_{name}") for name in (*names, "BASE_URL")),
            "ollama": bool(get("OLLAMA_URL") or get("OLLAMA_MODEL")),
        }
        return [provider for provider in PROVIDERS if signs[provider]]

    def connect(self, provider: str, model: str = "") -> LLMBackend:
        """Make a backend.

        Args:
            provider: One of ``PROVIDERS``.
            model: Not needed to list models.

        Raises:
            ConfigError: A key is missing, or an address or a key cannot be used.
        """
        settings = self.settings
        if provider == "ollama":
            return ollama.OllamaBackend(self._pool, model, base_url=settings.url("OLLAMA_URL", ollama.DEFAULT_URL))
        key = settings.secret(f"{provider.upper()}_API_KEY")
        if provider == "anthropic":
            url = settings.url("ANTHROPIC_BASE_URL", anthropic.DEFAULT_URL)
            version = settings.get("ANTHROPIC_VERSION") or anthropic.DEFAULT_VERSION
            key = self._checked("ANTHROPIC", key, url, needed=True)
            assert key is not None
            return anthropic.AnthropicBackend(self._pool, model, key, base_url=url, version=version)
        url = settings.url("OPENAI_BASE_URL", openai.DEFAULT_URL)
        key = self._checked("OPENAI", key, url, needed=url == openai.DEFAULT_URL)
        return openai.OpenAIBackend(self._pool, model, key, base_url=url, tokens_field=self._tokens_field())

    def _checked(self, who: str, key: SecretStr | None, url: str, *, needed: bool) -> SecretStr | None:
        """Refuse a missing key, and one that would travel in the clear."""
        if key is None and needed:
            raise ConfigError(f"{who}_API_KEY is not set", hint=f"set it, or {who}_API_KEY_FILE to the file it is in")
        if key is not None and url.startswith("http://") and not is_loopback(url) and not self._insecure:
            raise ConfigError(
                f"{who}_BASE_URL would send {who}_API_KEY unencrypted to another machine",
                hint="use https, or set LOOMQ_INSECURE=1 if the network itself is private",
            )
        return key

    def _tokens_field(self) -> openai.TokensField:
        said = self.settings.get("OPENAI_TOKENS_FIELD")
        for allowed in get_args(openai.TokensField):
            if said in (None, allowed):
                found: openai.TokensField = allowed
                return found
        raise ConfigError(
            f'OPENAI_TOKENS_FIELD cannot be "{said}"', hint="max_completion_tokens, or max_tokens for older servers"
        )
