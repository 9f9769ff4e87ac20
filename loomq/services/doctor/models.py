"""The doctor's look at language models: who serves each tier, and what the providers offer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loomq.errors import ConfigError, LLMError
from loomq.llm.http import HttpPool
from loomq.llm.tiers import Tiers
from loomq.messages import ModelTier
from loomq.problems import listed, suggest
from loomq.services.doctor.check import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loomq.catalog import Catalog
    from loomq.llm.base import LLMBackend
    from loomq.settings import Settings

_LIMIT_S = 1.0
_SHOWN = 5

Offer = list[str] | str  # the models, or why they cannot be told


def models(settings: Settings, catalog: Callable[[], Catalog]) -> Iterator[Check]:
    """Look at each tier and ask each provider, all at once.

    Args:
        catalog: Gives the project's files; asked for when the providers have answered.
    """
    pool = HttpPool()
    tiers = Tiers(pool, insecure=settings.insecure)
    providers = {tier: _provider(tiers, tier) for tier in ModelTier}
    offers = asyncio.run(_ask(pool, tiers, sorted({*tiers.configured, *filter(None, providers.values())})))
    used = _tiers_in_use(catalog())
    if not used and not tiers.configured:
        yield Check("models", "ok", "none is configured, and no worker needs one")
        return
    needed = {providers[tier] for tier in used}
    for name, offer in offers.items():
        if name in needed or name in tiers.configured:
            yield _offer(name, offer, is_needed=name in needed)
    for tier in ModelTier:
        yield from _tier(tiers, tier, offers, is_used=tier in used)


def _tiers_in_use(catalog: Catalog) -> set[ModelTier]:
    """Name the tiers that language model workers run on, whoever asks."""
    llm = {name: worker for name, worker in catalog.workers.items() if worker.worker_kind == "llm"}
    found = {catalog.rules.tier_overrides.get(name, worker.tier) for name, worker in llm.items()}
    asked = [pair for pipeline in catalog.pipelines.values() for pair in pipeline.tiers_asked]
    for name, orchestrator in catalog.orchestrators.items():
        found.add(catalog.rules.tier_overrides.get(name, orchestrator.default_model_tier))
        asked += orchestrator.tiers_asked
    return found | {tier for name, tier in asked if name in llm and name not in catalog.rules.tier_overrides}


def _provider(tiers: Tiers, tier: str) -> str | None:
    try:
        return tiers.provider(tier)
    except ConfigError:
        return None


async def _ask(pool: HttpPool, tiers: Tiers, providers: list[str]) -> dict[str, Offer]:
    async def one(provider: str) -> Offer:
        try:
            return await tiers.connect(provider).list_models(_LIMIT_S)
        except (ConfigError, LLMError) as error:
            return error.message

    try:
        return dict(zip(providers, await asyncio.gather(*map(one, providers)), strict=True))
    finally:
        await pool.aclose()


def _offer(provider: str, offer: Offer, *, is_needed: bool) -> Check:
    name = f"{provider} models"
    if isinstance(offer, str):
        fix = f"start it, or correct {'OLLAMA_URL' if provider == 'ollama' else f'{provider.upper()}_API_KEY'}"
        return Check(name, "fail" if is_needed else "warn", offer, fix)
    if not offer:
        fix = "ollama pull MODEL" if provider == "ollama" else f"check what {provider.upper()}_API_KEY may use"
        return Check(name, "warn", "it offers none", fix)
    return Check(name, "ok", listed(offer, most=_SHOWN))


def _tier(tiers: Tiers, tier: ModelTier, offers: dict[str, Offer], *, is_used: bool) -> Iterator[Check]:
    name = f"tier {tier}"
    try:
        backend, provider = tiers.backend(tier), tiers.provider(tier)
    except ConfigError as error:
        if is_used:
            yield Check(name, "fail", error.message, _naming(tiers, tier, offers) or error.hint or "")
        return
    offer = offers.get(provider)
    if isinstance(offer, list) and not {backend.model, f"{backend.model}:latest"} & set(offer):
        fix = suggest(backend.model, offer) or _naming(tiers, tier, offers)
        if provider == "ollama":
            fix = f"ollama pull {backend.model}"
        yield Check(name, "fail" if is_used else "warn", f"{provider} does not offer {backend.model}", fix)
    else:
        told = f"{backend.model} of {provider}{_price(tiers, backend)}"
        yield Check(name, "ok", f"{told}{'' if is_used else '; no worker uses it'}")
    yield from _fallbacks(tiers, tier, offers)


def _price(tiers: Tiers, backend: LLMBackend) -> str:
    price = tiers.price(backend)
    return f", ${price.input:g} in and ${price.output:g} out a million tokens" if price else ", price unknown"


def _fallbacks(tiers: Tiers, tier: ModelTier, offers: dict[str, Offer]) -> Iterator[Check]:
    """Look at the models that stand in for a tier's own."""
    name = f"tier {tier} fallbacks"
    try:
        found = tiers.models(tier)[1:]
        tiers.timeout_s(tier)
    except ConfigError as error:
        yield Check(name, "fail", error.message, error.hint or "")
        return
    for backend in found:
        offer = offers.get(backend.code.partition("-")[0])
        if isinstance(offer, list) and not {backend.model, f"{backend.model}:latest"} & set(offer):
            fix = suggest(backend.model, offer) or f"it offers {listed(offer, most=_SHOWN) or 'none'}"
            yield Check(name, "warn", f"{backend.provider} does not offer {backend.model}", fix)
            return
    if found:
        yield Check(name, "ok", ", ".join(f"{one.model} of {one.provider}{_price(tiers, one)}" for one in found))


def _naming(tiers: Tiers, tier: ModelTier, offers: dict[str, Offer]) -> str:
    """Give the command that names a model which is on offer."""
    provider = _provider(tiers, tier)
    offer = offers.get(provider or "")
    model = offer[0] if isinstance(offer, list) and offer else "MODEL"
    return f"export {tier.upper()}_MODEL={model}" if provider else ""
