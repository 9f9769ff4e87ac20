"""What calls cost: who says so, and that what nobody says is not free."""

from __future__ import annotations

from datetime import date
from typing import get_args

import pytest
from anthropic.types.model import Model
from hypothesis import given
from hypothesis import strategies as st

from loomq.config import load_spec
from loomq.errors import ConfigError
from loomq.llm import pricing
from loomq.llm.pricing import FREE, Price, PriceEntry, PriceTable, cost

SHIPPED, PROBLEMS = load_spec(pricing._SHIPPED, pricing._Shipped)
TOKENS = st.integers(0, 1_000_000)
USD = st.floats(0, 1000)


def entry(price):
    return {"input": price, "output": price}


def found(user, provider, model):
    price = PriceTable.load({name: entry(number) for number, name in enumerate(user, 1000)}).find(provider, model)
    return price if price is None or price.input < 1000 else user[int(price.input) - 1000]


def test_a_call_costs_its_fresh_cached_and_written_tokens_and_its_answer():
    price = Price(input=3, output=15, cached_input=0.3, cache_write=3.75)
    assert cost(price, 1000, 200) == pytest.approx((1000 * 3 + 200 * 15) / 1e6)
    assert cost(price, 1000, 200, cached_tokens=600, cache_write_tokens=300) == pytest.approx(
        (100 * 3 + 600 * 0.3 + 300 * 3.75 + 200 * 15) / 1e6
    )


def test_cached_tokens_cost_as_others_where_nobody_says_that_they_cost_less():
    assert cost(Price(2, 8), 1000, 0, 600, 300) == cost(Price(2, 8), 1000, 0)


def test_a_long_prompt_makes_the_whole_call_dearer():
    price = Price(1, 5, 0.1, long=Price(2, 7.5, 0.2), above=1000)
    assert cost(price, 1000, 100, 500) == pytest.approx((500 + 50 + 500) / 1e6)
    assert cost(price, 1001, 100, 500) == pytest.approx((501 * 2 + 100 + 750) / 1e6)


@given(USD, USD, USD, USD, TOKENS, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_never_negative(paid, output, read, written, prompt, completion, cached, put):
    assert cost(Price(paid, output, read, written), prompt, completion, cached, put) >= 0


def test_the_shipped_prices_are_in_order_and_name_models_that_exist():
    assert not PROBLEMS
    assert date.fromisoformat(SHIPPED.as_of).year == 2026
    known = get_args(get_args(Model)[0])
    for name, said in SHIPPED.prices.items():
        provider, _, model = name.partition("/")
        assert provider in ("anthropic", "openai")
        assert provider == "openai" or model in known
        for price in (said.price(), said.long and said.long):
            assert price is None or (price.cached_input or 0) < price.input <= (price.cache_write or price.input)
        assert said.long is None or cost(said.price(), said.long.above + 1, 1) > cost(said.price(), said.long.above, 1)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5-20250929"),
        ("openai", "gpt-5.4-mini-2026-03-17"),
        ("openai", "text-embedding-3-small"),
    ],
)
def test_the_shipped_prices_are_found(provider, model):
    assert PriceTable.load().find(provider, model) is not None


def test_a_snapshot_with_a_price_of_its_own_keeps_it():
    table = PriceTable.load()
    assert table.find("openai", "gpt-4o-2024-05-13").input == 5
    assert table.find("openai", "gpt-4o-2024-08-06").input == 2.5


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-99"),
        ("openai", "gpt-5-mini-but-new"),
        ("openai-compatible", "gpt-5-mini"),
        ("openai-compatible", "openai/gpt-5-mini"),
        ("anthropic", "gpt-5-mini"),
        ("ollama", "gpt-oss:120b-cloud"),
        ("ollama", "kimi:cloud"),
    ],
)
def test_what_nobody_says_is_unknown_and_not_nothing(provider, model):
    assert PriceTable.load().find(provider, model) is None


def test_what_runs_on_the_user_s_machine_costs_nothing_unless_they_say_so():
    assert PriceTable.load().find("ollama", "llama:latest") == FREE
    assert cost(FREE, 10**6, 10**6) == 0
    assert PriceTable.load({"ollama/*": entry(1)}).find("ollama", "llama:latest") == Price(1, 1)
    assert PriceTable.load({"ollama/kimi:cloud": entry(1)}).find("ollama", "kimi:cloud") == Price(1, 1)


@pytest.mark.parametrize(
    ("user", "provider", "model", "wins"),
    [
        (["openai/m", "m", "openai/m*", "m*", "*"], "openai", "m", "openai/m"),
        (["m", "openai/m*", "m*"], "openai", "m", "m"),
        (["openai/*", "mod*"], "openai", "model", "openai/*"),
        (["openai/mo*", "openai/model*", "openai/*"], "openai", "model-1", "openai/model*"),
        (["anthropic/*", "*"], "openai", "m", "*"),
        (["model", "model-2*"], "openai", "model-20250101", "model"),
        (["m-2026-04-01", "m"], "openai", "m-2026-04-01", "m-2026-04-01"),
        (["openai-compatible/*"], "openai-compatible", "a/b", "openai-compatible/*"),
        (["a/b"], "openai-compatible", "a/b", "a/b"),
        (["openai-compatible/openai/m"], "openai-compatible", "openai/m", "openai-compatible/openai/m"),
        (["openai/m"], "openai-compatible", "openai/m", None),
        (["llama"], "ollama", "llama:latest", "llama"),
    ],
)
def test_the_name_that_says_most_wins(user, provider, model, wins):
    assert found(user, provider, model) == wins
    assert found(user[::-1], provider, model) == wins


@pytest.mark.parametrize("name", ["openai/gpt-5-mini", "gpt-5-mini", "gpt-*", "openai/*", "*"])
def test_what_the_user_says_wins_over_what_ships_and_leaves_the_rest(name):
    table = PriceTable.load({name: PriceEntry(input=7, output=7)})
    assert table.find("openai", "gpt-5-mini-2025-08-07") == Price(7, 7)
    assert PriceTable.load({"openai/gpt-5": entry(7)}).find("openai", "gpt-5-mini").input == 0.25


@pytest.mark.parametrize("name", ["", "*m", "a*b", "openai/", "**"])
def test_a_name_that_can_fit_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="names no model"):
        PriceTable.load({name: entry(1)})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"input": 1}, "m.output: Field required"),
        ({"input": "1", "output": 1}, "m.input: Input should be a valid number"),
        ({"input": -1, "output": 1}, "m.input"),
        ({"input": float("nan"), "output": 1}, "m.input"),
        ({"input": 1, "output": 1, "outputs": 1}, "m.outputs: Extra inputs"),
        ({"input": 1, "output": 1, "long": {"above": 0, "input": 1, "output": 1}}, "m.long.above"),
        (3, "m: Input should be"),
    ],
)
def test_a_price_that_is_none_is_refused(said, told):
    with pytest.raises(ConfigError) as caught:
        PriceTable.load({"m": said})
    assert told in caught.value.message
