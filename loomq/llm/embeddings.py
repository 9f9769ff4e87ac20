"""Embeddings: texts in, vectors out, from Ollama, from an OpenAI-compatible server, or from this machine alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from loomq.errors import ConfigError, LLMAnswerError
from loomq.llm import ollama, openai
from loomq.llm.endpoint import Endpoint, Wire
from loomq.problems import suggest
from loomq.registry import load_dotted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from loomq.llm.http import HttpPool
    from loomq.llm.settings import LLMSettings

BATCH_SIZE = 64
TIMEOUT_S = 60.0
#: Providers that need no server, by the class that makes them.
OFFLINE = {
    "minilm": "loomq.contrib.embeddings.minilm.MiniLMEmbeddingProvider",
    "hashed": "loomq.contrib.embeddings.hashed.HashedEmbeddingProvider",
}
NAMES = ("openai", "ollama", *OFFLINE)

Vector = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)]


class EmbeddingProvider(ABC):
    """One model that turns texts into vectors, all of one length.

    Vectors of different models cannot be compared, so ``provider`` and ``model`` belong to whatever is stored.

    Example::

        provider = embedding_provider(LLMSettings.load(), pool)
        try:
            vectors = await provider.embed_batch(["a cat", "a kitten"])
            width = await provider.dimensions()
        finally:
            await provider.aclose()

    Args:
        dimensions: How long vectors are; if not given, the first answer says so.
        batch_size: The most texts in one request.
    """

    #: The provider, as error texts name it.
    provider: str
    model: str

    def __init__(self, dimensions: int | None = None, batch_size: int = BATCH_SIZE) -> None:
        if batch_size < 1 or (dimensions is not None and dimensions < 1):
            raise ConfigError("dimensions and batch_size of embeddings are at least 1")
        self._dimensions = dimensions
        self._batch_size = batch_size

    async def embed(self, text: str) -> list[float]:
        """Turn one text into its vector; errors as in ``embed_batch``."""
        return (await self.embed_batch([text]))[0]

    async def embed_batch(self, texts: Sequence[str]) -> list[list[float]]:
        """Turn texts into vectors, in their order and in as many requests as it takes.

        Raises:
            LLMAnswerError: The vectors are not as many as the texts, or not of one length.
            LLMError: As for a chat with the same provider.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            part = list(texts[start : start + self._batch_size])
            vectors += self._checked(await self._embed(part), len(part))
        return vectors

    async def dimensions(self) -> int:
        """Say how long the vectors are; where nothing was embedded yet, one word is. Errors as in ``embed_batch``."""
        if self._dimensions is None:
            await self.embed("dimensions")
        assert self._dimensions is not None
        return self._dimensions

    async def aclose(self) -> None:
        """Give back what the provider holds; connections are the pool's, and stay."""
        return

    @abstractmethod
    async def _embed(self, texts: list[str]) -> list[list[float]]:
        """Turn at least one text and at most a batch of them into vectors, in their order."""

    def _checked(self, vectors: list[list[float]], wanted: int) -> list[list[float]]:
        if len(vectors) != wanted:
            raise LLMAnswerError(f"{self.provider} gave {len(vectors)} vectors for {wanted} texts")
        expected = self._dimensions or len(vectors[0])
        other = next((len(vector) for vector in vectors if len(vector) != expected), None)
        if other is not None:
            raise LLMAnswerError(f"{self.provider} gave a vector of {other} numbers where {expected} were expected")
        self._dimensions = expected
        return vectors


class _OllamaEmbeddings(Wire):
    embeddings: list[Vector]


class OllamaEmbeddingProvider(EmbeddingProvider):
    """An embedding model that an Ollama server runs.

    Args:
        dimensions: Also asked for, of models that can give shorter vectors.
        timeout_s: Of one request.
    """

    provider = "Ollama"

    def __init__(
        self,
        pool: HttpPool,
        model: str,
        *,
        base_url: str = ollama.DEFAULT_URL,
        dimensions: int | None = None,
        batch_size: int = BATCH_SIZE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        super().__init__(dimensions, batch_size)
        self.model = model
        self._body = _body(model, dimensions)
        self._timeout_s = timeout_s
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"))

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        body = {**self._body, "input": texts}
        return (await self._endpoint.post("/api/embed", body, _OllamaEmbeddings, self._timeout_s)).embeddings


class _Datum(Wire):
    index: int
    embedding: Vector


class _OpenAIEmbeddings(Wire):
    data: list[_Datum]


class OpenAIEmbeddingProvider(EmbeddingProvider):
    """An embedding model behind an OpenAI-compatible server.

    Args:
        key: ``None`` for servers of one's own that ask for none.
        base_url: With the version in it, as ``https://api.openai.com/v1``.
        dimensions: Also asked for, of models that can give shorter vectors.
        timeout_s: Of one request.
    """

    provider = "OpenAI"

    def __init__(
        self,
        pool: HttpPool,
        model: str,
        key: SecretStr | None,
        *,
        base_url: str = openai.DEFAULT_URL,
        dimensions: int | None = None,
        batch_size: int = BATCH_SIZE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        super().__init__(dimensions, batch_size)
        if base_url.rstrip("/") != openai.DEFAULT_URL:
            self.provider = "the OpenAI-compatible server"
        self.model = model
        self._body = {**_body(model, dimensions), "encoding_format": "float"}
        self._timeout_s = timeout_s
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"), key, "OPENAI_API_KEY")

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        body = {**self._body, "input": texts}
        data = (await self._endpoint.post("/embeddings", body, _OpenAIEmbeddings, self._timeout_s)).data
        data = sorted(data, key=lambda one: one.index)
        if [one.index for one in data] != list(range(len(data))):
            raise LLMAnswerError(f"{self.provider} numbered its vectors with gaps or twice")
        return [one.embedding for one in data]


def _body(model: str, dimensions: int | None) -> dict[str, Any]:
    return {"model": model} if dimensions is None else {"model": model, "dimensions": dimensions}


def embedding_provider(
    settings: LLMSettings,
    pool: HttpPool,
    name: str | None = None,
    *,
    allow: Sequence[str] = (),
    insecure: bool = False,
) -> EmbeddingProvider:
    """Make the provider that the user configured.

    It is ``EMBEDDING_BACKEND``; without it OpenAI if its key is set, else Ollama. The model of these two is
    ``EMBEDDING_MODEL``; none is built in.

    Args:
        name: One of ``NAMES``, or a class of one's own as ``package.module.Class``, in place of the variable.
        allow: Packages that such a class may come from, as in ``Settings.import_allow``.
        insecure: Accept a key that would travel unencrypted to another machine.

    Raises:
        ConfigError: The name is unknown, no model is named, a key is missing, or it would travel in the clear.
        ImportRefusedError: The class cannot be had.
    """
    has_key = settings.get("OPENAI_API_KEY") or settings.get("OPENAI_API_KEY_FILE")
    name = name or settings.get("EMBEDDING_BACKEND") or ("openai" if has_key else "ollama")
    if name in OFFLINE or "." in name:
        found: type[EmbeddingProvider] = load_dotted(OFFLINE.get(name, name), allow=allow, expect=EmbeddingProvider)
        return found()
    if name not in NAMES:
        hint = suggest(name, NAMES) or f"it is one of {', '.join(NAMES)}, or package.module.Class"
        raise ConfigError(f'EMBEDDING_BACKEND names no provider of embeddings: "{name}"', hint=hint)
    model = settings.get("EMBEDDING_MODEL")
    if model is None:
        raise ConfigError(
            f"embeddings come from {name}, and no model is named: set EMBEDDING_MODEL",
            hint=f"or set EMBEDDING_BACKEND to another of {', '.join(NAMES)}",
        )
    if name == "ollama":
        return OllamaEmbeddingProvider(pool, model, base_url=settings.url("OLLAMA_URL", ollama.DEFAULT_URL))
    url = settings.url("OPENAI_BASE_URL", openai.DEFAULT_URL)
    key = settings.key("OPENAI", url, needed=url == openai.DEFAULT_URL, insecure=insecure)
    return OpenAIEmbeddingProvider(pool, model, key, base_url=url)
