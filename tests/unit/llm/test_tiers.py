"""Which provider and which model serve a tier, and what is told when none does."""

from __future__ import annotations

import pytest

from loomq.errors import ConfigError
from loomq.llm.anthropic import AnthropicBackend
from loomq.llm.http import HttpPool
from loomq.llm.ollama import OllamaBackend
from loomq.llm.openai import OpenAIBackend
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers

MODELS = {"ANTHROPIC_MODEL": "claude", "OPENAI_MODEL": "gpt", "OLLAMA_MODEL": "llama"}
ANTHROPIC = {"ANTHROPIC_API_KEY": "k"}
OPENAI = {"OPENAI_API_KEY": "k"}
LOOPBACK = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
ELSEWHERE = {"OPENAI_BASE_URL": "https://models.example/v1"}
OLLAMA = {"OLLAMA_URL": "http://localhost:9"}


def tiers(*said, insecure=False):
    return Tiers(
        HttpPool(), LLMSettings({name: value for one in said for name, value in one.items()}), insecure=insecure
    )


@pytest.mark.parametrize(
    ("said", "tier", "provider"),
    [
        ([ANTHROPIC, OPENAI, OLLAMA], "standard", "anthropic"),
        ([ANTHROPIC, OPENAI, OLLAMA], "frontier", "anthropic"),
        ([ANTHROPIC, OPENAI, OLLAMA], "local", "ollama"),
        ([OPENAI, OLLAMA], "standard", "openai"),
        ([LOOPBACK], "standard", "openai"),
        ([LOOPBACK], "local", "openai"),
        ([LOOPBACK, OLLAMA], "local", "ollama"),
        ([ELSEWHERE], "local", "ollama"),
        ([OLLAMA], "frontier", "ollama"),
        ([{}], "local", "ollama"),
        ([ANTHROPIC, {"STANDARD_BACKEND": "openai"}], "standard", "openai"),
        ([ELSEWHERE, {"LOCAL_BACKEND": "openai"}], "local", "openai"),
        ([{"ANTHROPIC_API_KEY_FILE": "/x"}], "standard", "anthropic"),
    ],
)
def test_a_tier_is_served_by_what_the_user_named_else_by_what_is_configured(said, tier, provider):
    assert tiers(*said).provider(tier) == provider


def test_the_tier_s_own_model_wins_over_the_provider_s():
    found = tiers(ANTHROPIC, MODELS, {"FRONTIER_MODEL": "claude-big"})
    assert found.backend("frontier").model == "claude-big"
    assert found.backend("standard").model == "claude"
    assert isinstance(found.backend("standard"), AnthropicBackend)
    assert isinstance(tiers(OPENAI, MODELS).backend("standard"), OpenAIBackend)
    assert isinstance(tiers(OLLAMA, MODELS).backend("standard"), OllamaBackend)


def test_a_backend_is_made_once():
    found = tiers(ANTHROPIC, MODELS)
    assert found.backend("standard") is found.backend("standard")


@pytest.mark.parametrize(
    ("said", "tier", "told"),
    [
        ([{}], "standard", ["ANTHROPIC_API_KEY", "OLLAMA_URL", "fake-llm"]),
        ([{}], "local", ["LOCAL_MODEL or OLLAMA_MODEL", "loomq doctor"]),
        ([ANTHROPIC], "frontier", ["FRONTIER_MODEL or ANTHROPIC_MODEL", "loomq doctor"]),
        ([OPENAI], "standard", ["STANDARD_MODEL or OPENAI_MODEL"]),
        ([MODELS, {"STANDARD_BACKEND": "anthropic"}], "standard", ["ANTHROPIC_API_KEY is not set"]),
        ([MODELS, {"STANDARD_BACKEND": "openai"}], "standard", ["OPENAI_API_KEY is not set"]),
        ([MODELS, {"STANDARD_BACKEND": "antropic"}], "standard", ["antropic", 'did you mean "anthropic"?']),
        ([OPENAI, MODELS, {"OPENAI_TOKENS_FIELD": "tokens"}], "standard", ["OPENAI_TOKENS_FIELD"]),
        ([ANTHROPIC, MODELS, {"ANTHROPIC_BASE_URL": "http://far"}], "standard", ["unencrypted", "LOOMQ_INSECURE"]),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(said, tier, told):
    with pytest.raises(ConfigError) as caught:
        tiers(*said).backend(tier)
    assert all(text in str(caught.value) for text in told), str(caught.value)
    assert not caught.value.retryable


def test_a_server_of_one_s_own_needs_no_key():
    assert tiers(ELSEWHERE, MODELS).backend("standard").model == "gpt"
    assert tiers(LOOPBACK, OPENAI, MODELS).backend("standard").model == "gpt"


def test_a_private_network_may_be_trusted_by_saying_so():
    said = [ANTHROPIC, MODELS, {"ANTHROPIC_BASE_URL": "http://far"}]
    assert tiers(*said, insecure=True).backend("standard").model == "claude"


def test_the_configured_providers_are_listed_for_whoever_looks():
    assert tiers(ANTHROPIC, OLLAMA).configured == ["anthropic", "ollama"]
    assert tiers({}).configured == []
