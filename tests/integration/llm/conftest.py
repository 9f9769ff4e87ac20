"""The official clients of the three providers, which judge the fake server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anthropic
import ollama
import openai
import pytest

from loomq.testing.llm import FakeServer


@pytest.fixture
def claude() -> Iterator[Callable[..., anthropic.Anthropic]]:
    """Anthropic's client, for a server."""
    opened = []

    def connect(server: FakeServer, **more: object) -> anthropic.Anthropic:
        opened.append(anthropic.Anthropic(**{"api_key": "k", "base_url": server.url, "max_retries": 0, **more}))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def gpt() -> Iterator[Callable[..., openai.OpenAI]]:
    """OpenAI's client, for a server."""
    opened = []

    def connect(server: FakeServer, **more: object) -> openai.OpenAI:
        opened.append(openai.OpenAI(**{"api_key": "k", "base_url": server.openai_url, "max_retries": 0, **more}))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def llama() -> Iterator[Callable[..., ollama.Client]]:
    """Ollama's client, for a server."""
    opened = []

    def connect(server: FakeServer) -> ollama.Client:
        opened.append(ollama.Client(server.url))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()
