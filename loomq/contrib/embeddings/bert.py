"""The forward pass of a BERT encoder in numpy, as the small sentence-transformers need it and no more."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from loomq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# erf after Abramowitz and Stegun, 7.1.26, which is wrong by 1.5e-7 at most: numpy has none.
_P, _ERF = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


class Bert:
    """The weights of one model, and its vectors for tokens; safe to use in several threads.

    Args:
        folder: What holds ``config.json`` and ``model.safetensors``, as sentence-transformers writes them.

    Raises:
        ConfigError: A file is missing or broken, or the model is none that is computed here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = _config(folder / CONFIG)
        self._weights = _tensors(folder / WEIGHTS)
        self._eps = float(self._config.get("layer_norm_eps", 1e-12))
        self._heads = self._whole("num_attention_heads")
        self._layers = self._whole("num_hidden_layers")
        self.most_tokens = self._whole("max_position_embeddings")
        try:
            self.encode([0])
        except KeyError as error:
            raise ConfigError(f"{folder / WEIGHTS} holds no tensor {error.args[0]}") from None
        except ValueError:
            raise ConfigError(f"{folder / WEIGHTS} and {CONFIG} are of different models") from None

    def _whole(self, name: str) -> int:
        found = self._config.get(name)
        if not isinstance(found, int) or found < 1:
            raise ConfigError(f"{self._folder / CONFIG} says no {name}")
        return found

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return len(self._weights["embeddings.word_embeddings.weight"])

    def encode(self, ids: Sequence[int]) -> list[float]:
        """Give the mean of one text's token vectors, brought to length 1.

        Texts are computed one by one: side by side they would need padding and more memory, and take longer.

        Args:
            ids: Its token numbers, at least one and at most ``most_tokens``.
        """
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][np.asarray(ids)]
            + weights["embeddings.position_embeddings.weight"][: len(ids)]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._normed(hidden, "embeddings.LayerNorm")
        for number in range(self._layers):
            hidden = self._layer(hidden, f"encoder.layer.{number}")
        mean = hidden.mean(axis=0)
        unit: list[float] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).tolist()
        return unit

    def _layer(self, hidden: Floats, name: str) -> Floats:
        seen = self._dense(self._attention(hidden, f"{name}.attention.self"), f"{name}.attention.output.dense")
        hidden = self._normed(hidden + seen, f"{name}.attention.output.LayerNorm")
        wide = gelu(self._dense(hidden, f"{name}.intermediate.dense"))
        return self._normed(hidden + self._dense(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, hidden: Floats, name: str) -> Floats:
        tokens, size = hidden.shape
        query, key, value = (
            self._dense(hidden, f"{name}.{part}").reshape(tokens, self._heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(query.shape[-1]))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        joined: Floats = (scores @ value).transpose(1, 0, 2).reshape(tokens, size)
        return joined

    def _dense(self, hidden: Floats, name: str) -> Floats:
        product: Floats = hidden @ self._weights[f"{name}.weight"].T
        product += self._weights[f"{name}.bias"]
        return product

    def _normed(self, hidden: Floats, name: str) -> Floats:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(self._eps))
        normed: Floats = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed


def gelu(hidden: Floats) -> Floats:
    """Compute GELU exactly, with the error function and not with tanh: x/2 · (1 + erf(x/√2))."""
    root = np.abs(hidden) * np.float32(math.sqrt(0.5))
    step = 1 / (1 + np.float32(_P) * root)
    tail = np.zeros_like(step)
    for coefficient in _ERF:
        tail += np.float32(coefficient)
        tail *= step
    tail *= np.exp(-np.square(root))
    result: Floats = hidden * np.float32(0.5) * (1 + np.copysign(1 - tail, hidden))
    return result


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{path} is no JSON") from None
    if not isinstance(config, dict) or (config.get("model_type"), config.get("hidden_act")) != ("bert", "gelu"):
        raise ConfigError(f"{path} is not that of a BERT with GELU, and no other model is computed here")
    return config


def _tensors(path: Path) -> dict[str, Floats]:
    if not path.is_file():
        raise ConfigError(f"{path} is missing", hint="weights are read from safetensors only")
    try:
        found = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})") from None
    return {name: tensor.astype(np.float32) for name, tensor in found.items() if tensor.dtype.kind == "f"}
