"""Which backend serves which tier: what the user named, else the first provider that is configured.

A tier's provider is ``<TIER>_BACKEND`` (``ollama``, ``anthropic`` or ``openai``). Without it ``local`` is Ollama, or an
OpenAI-compatible server on this machine; ``standard`` and ``frontier`` are Anthropic, OpenAI or Ollama, the first that
has a key or an address. Its model is ``<TIER>_MODEL``, else ``<PROVIDER>_MODEL``; no model is built in. What stands in
when that one fails are ``<TIER>_FALLBACKS``, models in their order.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, get_args

from loomq.errors import ConfigError
from loomq.llm import anthropic, ollama, openai
from loomq.llm.pricing import PriceTable, cost
from loomq.llm.settings import LLMSettings, is_loopback
from loomq.messages import ModelTier
from loomq.problems import suggest

if TYPE_CHECKING:
    from loomq.llm.base import LLMBackend, LLMReply
    from loomq.llm.http import HttpPool
    from loomq.llm.pricing import Price

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
        self._fallbacks: dict[str, tuple[LLMBackend, ...]] = {}
        self._price_of: dict[tuple[str, str, str], Price | None] = {}

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

    def models(self, tier: str) -> tuple[LLMBackend, ...]:
        """Give the backends of a tier in their order: the one that serves it, and those that stand in.

        Raises:
            ConfigError: As ``backend``; also if a fallback cannot be used.
        """
        first = self.backend(tier)
        if tier not in self._fallbacks:
            said = self.settings.get(f"{tier.upper()}_FALLBACKS") or ""
            names = [name.strip() for name in said.split(",") if name.strip()]
            self._fallbacks[tier] = tuple(self._fallback(tier, name) for name in names)
        return (first, *self._fallbacks[tier])

    def _fallback(self, tier: str, name: str) -> LLMBackend:
        """Make the backend of ``provider/model``, or of a model of the tier's own provider."""
        provider, _, model = name.partition("/")
        if provider not in PROVIDERS:  # a model's name may have slashes
            provider, model = self.provider(tier), name
        if not model:
            raise ConfigError(f'{tier.upper()}_FALLBACKS names no model: "{name}"', hint="write provider/model")
        return self.connect(provider, model)

    def timeout_s(self, tier: str) -> float | None:
        """Say how long one call of a tier may take; ``None`` is as long as its task has.

        Raises:
            ConfigError: What is set is no duration.
        """
        return self.settings.seconds(f"{tier.upper()}_TIMEOUT_SECONDS")

    @property
    def may_structure(self) -> bool:
        """Whether models are told the contract of their answer in their provider's own way.

        Raises:
            ConfigError: ``STRUCTURED_OUTPUT`` is neither on nor off.
        """
        said = self.settings.get("STRUCTURED_OUTPUT") or "on"
        if said not in ("on", "off"):
            raise ConfigError(f'STRUCTURED_OUTPUT cannot be "{said}"', hint="on, or off to leave it to the prompt")
        return said == "on"

    @cached_property
    def prices(self) -> PriceTable:
        """What models cost."""
        return PriceTable.load(self.settings.prices)

    def price(self, backend: LLMBackend, model: str = "") -> Price | None:
        """Give what a model costs, by the name that it answered under or else its own; ``None`` if nobody knows."""
        which = (backend.code, model, backend.model)
        if which not in self._price_of:
            found = self.prices.find(backend.code, model) if model else None
            self._price_of[which] = found or self.prices.find(backend.code, backend.model)
        return self._price_of[which]

    def cost(self, backend: LLMBackend, reply: LLMReply) -> float | None:
        """Give what a reply cost in US dollars; ``None`` if nobody knows."""
        price = self.price(backend, reply.model)
        if price is None:
            return None
        return cost(price, reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens, reply.cache_write_tokens)

    def most(self, backend: LLMBackend, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Give what so many tokens of a model cost at the most, in US dollars; ``None`` if nobody knows.

        None of them is read from a cache, and all of the prompt may be written to one, where that is dearer.
        """
        price = self.price(backend)
        if price is None:
            return None
        plain = cost(price, prompt_tokens, completion_tokens)
        return max(plain, cost(price, prompt_tokens, completion_tokens, 0, prompt_tokens))

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
        if provider == "anthropic":
            url = settings.url("ANTHROPIC_BASE_URL", anthropic.DEFAULT_URL)
            version = settings.get("ANTHROPIC_VERSION") or anthropic.DEFAULT_VERSION
            key = settings.key("ANTHROPIC", url, needed=True, insecure=self._insecure)
            assert key is not None
            return anthropic.AnthropicBackend(self._pool, model, key, base_url=url, version=version)
        url = settings.url("OPENAI_BASE_URL", openai.DEFAULT_URL)
        key = settings.key("OPENAI", url, needed=url == openai.DEFAULT_URL, insecure=self._insecure)
        return openai.OpenAIBackend(self._pool, model, key, base_url=url, tokens_field=self._tokens_field())

    def _tokens_field(self) -> openai.TokensField:
        said = self.settings.get("OPENAI_TOKENS_FIELD")
        for allowed in get_args(openai.TokensField):
            if said in (None, allowed):
                found: openai.TokensField = allowed
                return found
        raise ConfigError(
            f'OPENAI_TOKENS_FIELD cannot be "{said}"', hint="max_completion_tokens, or max_tokens for older servers"
        )
