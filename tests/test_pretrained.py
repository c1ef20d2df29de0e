"""GPT-2 and BERT by the names of their files: against what `transformers` made of the same.

`kept_pretrained` holds models of random parameters and their logits, written with transformers
5.24.0 and torch 2.15.0 by

    python benchmarks/pretrained.py write tests/kept_pretrained --small
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from flaxattn import (
    DecoderOnly,
    EncoderOnly,
    MaskedTokens,
    TextLabels,
    TokenLabels,
    TransformerConfig,
)
from flaxattn.models.pretrained import bert, gpt2

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "kept_pretrained"
GPT2, BERT = (load_file(KEPT / f"{name}.safetensors") for name in ("gpt2", "bert"))
WORD, BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias"
CLASSIFIER = {"classifier.weight": np.ones((3, 16), np.float32), "classifier.bias": np.zeros(3)}
POOLER = {"bert.pooler.dense.weight": np.eye(16) / 2, "bert.pooler.dense.bias": np.ones(16)}
HEADS = {
    None: (EncoderOnly, {}),
    "masked_tokens": (MaskedTokens, {}),
    "token_labels": (lambda config: TokenLabels(config, num_labels=3), CLASSIFIER),
    "text_labels": (lambda config: TextLabels(config, num_labels=3), CLASSIFIER | POOLER),
}


def without(arrays, *endings):
    return {name: array for name, array in arrays.items() if not name.endswith(endings)}


def shapes(tree):
    return jax.tree.map(np.shape, tree)


def logits(model, params, tokens):
    return model.apply({"params": params}, tokens, deterministic=True)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_logits_are_those_that_transformers_made(name):
    path = ROOT / "benchmarks" / "pretrained.py"
    spec = importlib.util.spec_from_file_location("pretrained_benchmark", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert max(script.difference(KEPT / f"{name}.safetensors")) < 1e-5


def test_the_architecture_is_read_off_the_shapes():
    common = {
        "vocab_size": 50,
        "features": 16,
        "ff_features": 24,
        "num_heads": 2,
        "num_layers": 2,
        "positions": "learned",
        "max_positions": 12,
        "norm": "layer",
        "use_bias": True,
        "scale_embeddings": False,
    }
    assert gpt2(GPT2, 2)[0] == TransformerConfig(**common, activation="gelu", norm_epsilon=1e-5)
    assert bert(BERT, 2)[0] == TransformerConfig(
        **common,
        activation="gelu_exact",
        norm_position="post",
        norm_epsilon=1e-12,
        embedding_norm=True,
        token_types=2,
    )


@pytest.mark.parametrize("head", HEADS)
def test_the_parameters_are_those_that_the_model_has(head):
    make, more = HEADS[head]
    config, params = bert(BERT | more, 4, head)
    init = jax.eval_shape(
        lambda: make(config).init(jax.random.key(0), jnp.ones((1, 2), int), deterministic=True)
    )
    assert shapes(params) == shapes(init["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_labels_are_those_of_the_vectors():
    config, params = bert(BERT, 2)
    tokens = jnp.array([[3, 7, 9, 30]])
    x = np.asarray(logits(EncoderOnly(config), params, tokens))
    matrix, bias = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    classifier = {"classifier.weight": matrix, "classifier.bias": bias[:, 0]}
    config, params = bert(BERT | classifier, 2, "token_labels")
    found = logits(TokenLabels(config, num_labels=3), params, tokens)
    np.testing.assert_allclose(found, x @ matrix.T + bias[:, 0], atol=1e-4)
    config, params = bert(BERT | classifier | POOLER, 2, "text_labels")
    found = logits(TextLabels(config, num_labels=3), params, tokens)[:, 0]
    np.testing.assert_allclose(found, np.tanh(x[:, 0] / 2 + 1) @ matrix.T + bias[:, 0], atol=1e-4)


BUFFERS = {"transformer.h.0.attn.bias": np.ones(3), "transformer.h.1.attn.masked_bias": np.ones(())}
SAME = {
    "GPT-2 without prefixes": (gpt2, GPT2, "transformer.", {}),
    "GPT-2 with buffers": (gpt2, GPT2, "", BUFFERS),
    "GPT-2 with its output repeated": (
        gpt2,
        GPT2,
        "",
        {"lm_head.weight": GPT2["transformer.wte.weight"]},
    ),
    "BERT without prefixes": (bert, BERT, "bert.", {}),
    "BERT with other heads": (bert, BERT, "", CLASSIFIER | POOLER),
    "BERT with buffers": (bert, BERT, "", {"bert.embeddings.position_ids": np.arange(12)}),
}


@pytest.mark.parametrize("case", SAME)
def test_names_that_say_nothing_more_change_nothing(case):
    read, arrays, prefix, more = SAME[case]
    changed = {name.removeprefix(prefix): array for name, array in (arrays | more).items()}
    config, params = read(arrays, 2)
    changed_config, changed_params = read(changed, 2)
    assert config == changed_config
    jax.tree.map(np.testing.assert_array_equal, params, changed_params)


def test_masked_tokens_may_be_told_by_repeated_arrays_and_by_older_names():
    older = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for name, array in BERT.items()
    }
    assert older.keys() != BERT.keys()
    table = BERT["bert.embeddings.word_embeddings.weight"]
    older |= {WORD: table, "cls.predictions.decoder.bias": BERT[BIAS]}
    older |= {"cls.seq_relationship.weight": np.ones((2, 16))} | POOLER
    config, params = bert(BERT, 2, "masked_tokens")
    older_config, older_params = bert(older, 2, "masked_tokens")
    assert config == older_config and config.tie_embeddings
    jax.tree.map(np.testing.assert_array_equal, params, older_params)


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_an_output_matrix_of_its_own_gives_the_logits(model):
    read, arrays, name, kind = {
        "gpt2": (gpt2, GPT2, "lm_head.weight", DecoderOnly),
        "bert": (lambda *given: bert(*given, "masked_tokens"), BERT, WORD, MaskedTokens),
    }[model]
    table = arrays.get(
        "transformer.wte.weight", arrays.get("bert.embeddings.word_embeddings.weight")
    )
    tokens, bias = jnp.array([[3, 7, 9]]), 0 if model == "gpt2" else BERT[BIAS][None, None]
    tied = logits(kind(read(arrays, 2)[0]), read(arrays, 2)[1], tokens) - bias
    config, params = read(arrays | {name: 2 * table}, 2)
    assert not config.tie_embeddings
    found = logits(kind(config), params, tokens) - bias
    np.testing.assert_allclose(found, 2 * tied, rtol=1e-4, atol=1e-4)


def test_other_dtypes_are_read_as_float32():
    half = {name: array.astype(jnp.bfloat16) for name, array in GPT2.items()}
    _, params = gpt2(half, 2)
    table = params["embedding"]["tokens"]["embedding"]
    expected = half["transformer.wte.weight"].astype(jnp.float32)
    np.testing.assert_array_equal(table, expected)


WRONG = {
    "1 missing: h.1.ln_2.bias": lambda: gpt2(without(GPT2, "h.1.ln_2.bias"), 2),
    r"missing: wte.weight, wpe.weight.*, \.\.\.; 28 without a place": lambda: gpt2(
        {f"x.{name}": array for name, array in GPT2.items()}, 2
    ),
    "1 without a place: score.weight": lambda: gpt2(GPT2 | {"score.weight": np.ones((2, 16))}, 2),
    "with 'transformer.' before it and without": lambda: gpt2(
        GPT2 | {"ln_f.bias": GPT2["transformer.ln_f.bias"]}, 2
    ),
    r"h.0.attn.c_attn.weight .*3D = 47; but three times D of wte.weight has 3D = 48": lambda: gpt2(
        GPT2 | {"transformer.h.0.attn.c_attn.weight": np.ones((16, 47))}, 2
    ),
    "ln_f.bias .*; but wte.weight has D = 16": lambda: gpt2(
        GPT2 | {"transformer.ln_f.bias": np.ones(15)}, 2
    ),
    "ln_f.bias has dtype int": lambda: gpt2(
        GPT2 | {"transformer.ln_f.bias": np.ones(16, np.int32)}, 2
    ),
    "expected a multiple of num_heads, 3": lambda: gpt2(GPT2, 3),
    "head is 'words'": lambda: bert(BERT, 2, "words"),
    "missing: classifier.weight, classifier.bias": lambda: bert(BERT, 2, "token_labels"),
    f"without a place: {WORD.replace('weight', 'bias')}": lambda: bert(
        BERT | {WORD.replace("weight", "bias"): np.ones(50)}, 2, "masked_tokens"
    ),
    "missing: embeddings.token_type_embeddings.weight": lambda: bert(
        without(BERT, "type_embeddings.weight"), 2
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_errors_name_what_is_wrong(told):
    with pytest.raises((ValueError, TypeError), match=told):
        WRONG[told]()
