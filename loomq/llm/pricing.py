"""What calls cost: the providers' list prices that ship with loomq, and the user's own, which win."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from loomq.config import Number, Size, Spec, Text, load_spec
from loomq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROVIDERS = ("anthropic", "openai", "openai-compatible", "ollama")
_SHIPPED = Path(__file__).with_name("prices.yaml")
_MILLION = 1_000_000
# A snapshot of a model costs what the model costs: -20250929, -2026-04-01, and Ollama's :latest.
_SNAPSHOT = re.compile(r"(-\d{8}|-\d{4}-\d{2}-\d{2}|:latest)$")
_ON_OLLAMA_S_MACHINES = ("-cloud", ":cloud")


class _Rates(Spec):
    input: Number
    output: Number
    cached_input: Number | None = None
    """For what the provider read from its cache; as input if not given."""
    cache_write: Number | None = None
    """For what it put into its cache; as input if not given."""


class LongPromptEntry(_Rates):
    """What a call with a long prompt costs, all of it."""

    above: Size
    """Tokens up to which a prompt is not long."""


class PriceEntry(_Rates):
    """What a model costs, in US dollars for a million tokens."""

    long: LongPromptEntry | None = None
    """What calls with long prompts cost, where that differs."""

    def price(self) -> Price:
        """Give the price that the entry says."""
        rates = {"input", "output", "cached_input", "cache_write"}
        if self.long is None:
            return Price(**self.model_dump(include=rates))
        long = Price(**self.long.model_dump(include=rates))
        return Price(**self.model_dump(include=rates), long=long, above=self.long.above)


class _Shipped(Spec):
    as_of: Text
    prices: dict[str, PriceEntry]


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars for a million tokens.

    Args:
        cached_input, cache_write: For what the provider read from its cache, and for what it put there; ``None`` if
            nobody says, and then it is charged as ``input``.
        long, above: What the whole call costs if its prompt has more tokens than ``above``.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    long: Price | None = None
    above: int = 0


FREE = Price(0.0, 0.0)


def cost(
    price: Price, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, cache_write_tokens: int = 0
) -> float:
    """Give what a call costs in US dollars.

    Args:
        prompt_tokens: All of the prompt, with those that were read from the cache and those that were put there.
    """
    if price.long is not None and prompt_tokens > price.above:
        price = price.long
    read = price.input if price.cached_input is None else price.cached_input
    written = price.input if price.cache_write is None else price.cache_write
    fresh = max(prompt_tokens - cached_tokens - cache_write_tokens, 0)
    spent = fresh * price.input + cached_tokens * read + cache_write_tokens * written
    return (spent + completion_tokens * price.output) / _MILLION


class PriceTable:
    """Prices by model: ``model`` or ``provider/model``, and with ``*`` at the end all that begin so.

    A whole name wins over a beginning, a name with its provider over one without, a longer beginning over a shorter
    one. A dated snapshot and ``:latest`` cost what the name without them does, unless they have prices of their own.

    Args:
        tables: The strongest first: what the first says of a model, in whichever way, the others cannot change.
    """

    def __init__(self, *tables: Mapping[str, PriceEntry]) -> None:
        self._tables = [{_split(name): entry.price() for name, entry in table.items()} for table in tables]

    @classmethod
    def load(cls, user: Mapping[str, Any] | None = None) -> PriceTable:
        """Read the prices that ship with loomq, below the user's own.

        Args:
            user: ``PriceEntry`` or what one is made of, by name.

        Raises:
            ConfigError: A price of the user's is none.
        """
        shipped, problems = load_spec(_SHIPPED, _Shipped)
        assert shipped is not None, problems
        return cls({name: _entry(name, said) for name, said in (user or {}).items()}, shipped.prices)

    def find(self, provider: str, model: str) -> Price | None:
        """Give what a model costs; ``None`` if nobody knows, which is not the same as nothing.

        What Ollama runs is free, for the machine is the user's; its models in the cloud have no known price.

        Args:
            provider: One of ``PROVIDERS``. A server of one's own that speaks OpenAI's wire is ``openai-compatible``,
                and OpenAI's prices are not its.
        """
        for table in self._tables:
            for key in _keys(provider, model):
                if key in table:
                    return table[key]
        if provider == "ollama" and not model.endswith(_ON_OLLAMA_S_MACHINES):
            return FREE
        return None


def _keys(provider: str, model: str) -> Iterator[tuple[str, str]]:
    """List what a table may call a model, the name that fits best first."""
    for name in dict.fromkeys((model, _SNAPSHOT.sub("", model))):
        yield provider, name
        yield "", name
    for owner in (provider, ""):
        for length in range(len(model), -1, -1):
            yield owner, f"{model[:length]}*"


def _split(name: str) -> tuple[str, str]:
    """Part the provider from the model, whose own name may have slashes."""
    owner, slash, model = name.partition("/")
    found = (owner, model) if slash and owner in PROVIDERS else ("", name)
    if not found[1] or "*" in found[1][:-1]:
        raise ConfigError(
            f'prices: "{name}" names no model', hint="write model, provider/model, or one of them with * at its end"
        )
    return found


def _entry(name: str, said: Any) -> PriceEntry:
    try:
        return said if isinstance(said, PriceEntry) else PriceEntry.model_validate(said)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        told = ".".join(map(str, (name, *fault["loc"])))
        raise ConfigError(
            f"prices: {told}: {fault['msg']}", hint="input and output are numbers: US dollars for a million tokens"
        ) from None
