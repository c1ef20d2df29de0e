"""Parameters of GPT-2 and BERT architectures, by the names that their published files give them.

A file of safetensors is a mapping of names to arrays: `safetensors.flax.load_file(path)`. The maps
of names below are all there is to know; `i` is the number of a layer. Letters: V vocabulary,
P positions, U token types, D width of the model, F feed-forward width, C labels.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxattn import checks
from flaxattn.models.stack_config import TransformerConfig
from flaxattn.types import Array, PyTree

__all__ = ["bert", "gpt2"]

Head = Literal["masked_tokens", "token_labels", "text_labels"]


class _Entry(NamedTuple):
    """An array of a file, and the parameter that it becomes."""

    theirs: str
    axes: str  # of their array
    ours: str  # or several, of which their last axis is made
    turned: bool = False  # whether a matrix is kept [out, in], as PyTorch's Linear has it


def _matrix(theirs: str, axes: str, ours: str, *, turned: bool = True) -> list[_Entry]:
    """A matrix [in, out], or turned [out, in], and its bias [out]."""
    kernel, bias = (" ".join(f"{one}/{leaf}" for one in ours.split()) for leaf in _LEAVES)
    out = axes.split()[0 if turned else 1]
    return [
        _Entry(f"{theirs}.weight", axes, kernel, turned),
        _Entry(f"{theirs}.bias", out, bias),
    ]


def _norm(theirs: str, ours: str) -> list[_Entry]:
    """Scale and bias of a LayerNorm."""
    return [
        _Entry(f"{theirs}.weight", "D", f"{ours}/scale"),
        _Entry(f"{theirs}.bias", "D", f"{ours}/bias"),
    ]


_LEAVES = ("kernel", "bias")
_QUERY_KEY_VALUE = " ".join(
    f"decoder/layer_i/self_attention/{p}" for p in ("query", "key", "value")
)

_GPT2 = [
    _Entry("wte.weight", "V D", "embedding/tokens/embedding"),
    _Entry("wpe.weight", "P D", "embedding/positions/embedding"),
    *_norm("h.i.ln_1", "decoder/layer_i/self_attention_norm"),
    *_matrix("h.i.attn.c_attn", "D 3D", _QUERY_KEY_VALUE, turned=False),
    *_matrix("h.i.attn.c_proj", "D D", "decoder/layer_i/self_attention/out", turned=False),
    *_norm("h.i.ln_2", "decoder/layer_i/feed_forward_norm"),
    *_matrix("h.i.mlp.c_fc", "D F", "decoder/layer_i/feed_forward/up", turned=False),
    *_matrix("h.i.mlp.c_proj", "F D", "decoder/layer_i/feed_forward/down", turned=False),
    *_norm("ln_f", "decoder/final_norm"),
]
_GPT2_OUTPUT = _Entry("lm_head.weight", "V D", "embedding/output/embedding")
_GPT2_UNUSED = r"h\.\d+\.attn\.(bias|masked_bias)"  # masks

_BERT_LAYER, _LAYER = "encoder.layer.i", "encoder/layer_i"
_BERT = [
    _Entry("embeddings.word_embeddings.weight", "V D", "embedding/tokens/embedding"),
    _Entry("embeddings.position_embeddings.weight", "P D", "embedding/positions/embedding"),
    _Entry("embeddings.token_type_embeddings.weight", "U D", "embedding/types/embedding"),
    *_norm("embeddings.LayerNorm", "embedding/norm"),
    *_matrix(f"{_BERT_LAYER}.attention.self.query", "D D", f"{_LAYER}/self_attention/query"),
    *_matrix(f"{_BERT_LAYER}.attention.self.key", "D D", f"{_LAYER}/self_attention/key"),
    *_matrix(f"{_BERT_LAYER}.attention.self.value", "D D", f"{_LAYER}/self_attention/value"),
    *_matrix(f"{_BERT_LAYER}.attention.output.dense", "D D", f"{_LAYER}/self_attention/out"),
    *_norm(f"{_BERT_LAYER}.attention.output.LayerNorm", f"{_LAYER}/self_attention_norm"),
    *_matrix(f"{_BERT_LAYER}.intermediate.dense", "F D", f"{_LAYER}/feed_forward/up"),
    *_matrix(f"{_BERT_LAYER}.output.dense", "D F", f"{_LAYER}/feed_forward/down"),
    *_norm(f"{_BERT_LAYER}.output.LayerNorm", f"{_LAYER}/feed_forward_norm"),
]
_BERT_HEADS: dict[Head, list[_Entry]] = {
    "masked_tokens": [
        *_matrix("cls.predictions.transform.dense", "D D", "transform"),
        *_norm("cls.predictions.transform.LayerNorm", "norm"),
        _Entry("cls.predictions.bias", "V", "bias"),
    ],
    "token_labels": _matrix("classifier", "C D", "labels"),
    "text_labels": [
        *_matrix("pooler.dense", "D D", "pooler"),
        *_matrix("classifier", "C D", "labels"),
    ],
}
_BERT_OUTPUT = _Entry("cls.predictions.decoder.weight", "V D", "text/embedding/output/embedding")
_BERT_UNUSED = r"embeddings\.(position_ids|token_type_ids)"
_OTHER_HEADS = r"(cls|pooler|classifier)\..*"


def gpt2(arrays: Mapping[str, Array], num_heads: int) -> tuple[TransformerConfig, PyTree]:
    """The architecture and the parameters of a `DecoderOnly`, of a `GPT2LMHeadModel`'s arrays.

    Sizes are read off the shapes. Token 0 is a word there: give the model `pad_id=-1`, or segments.

    Args:
      arrays: by name, with or without "transformer." before it; left as they are.
      num_heads: N, which no shape tells: `n_head` of the model's config.json.

    Raises:
      ValueError that tells which names are missing and which have no place, or which array has
      another shape than the others make it; TypeError for what is no floating array.
    """
    found = _by_name(arrays, "transformer.")
    entries = _entries(_GPT2, found, r"h\.(\d+)\.")
    tied = _drop_repeated(found, "lm_head.weight", "wte.weight")
    if not tied:
        entries.append(_GPT2_OUTPUT)
    _check_names("GPT-2", found, entries, _GPT2_UNUSED)
    config = _config(
        _sizes(found, entries),
        num_heads,
        num_layers=_count(found, r"h\.(\d+)\."),
        activation="gelu",
        norm_position="pre",
        norm_epsilon=1e-5,
        tie_embeddings=tied,
    )
    return config, _params(found, entries, num_heads)


def bert(
    arrays: Mapping[str, Array], num_heads: int, head: Head | None = None
) -> tuple[TransformerConfig, PyTree]:
    """The architecture and the parameters of an `EncoderOnly`, or of one with a head.

    Sizes are read off the shapes: the number of labels is that of the biases of "labels".

    Args:
      arrays: by name, with or without "bert." before it; left as they are.
      num_heads: N, which no shape tells: `num_attention_heads` of the model's config.json.
      head: of a `BertForMaskedLM` "masked_tokens", for `MaskedTokens`; "token_labels" of a
        `BertForTokenClassification`; "text_labels" of a `BertForSequenceClassification`. None:
        `EncoderOnly`, whatever head the file has.

    Raises:
      As `gpt2`.
    """
    if head not in (None, *_BERT_HEADS):
        raise ValueError(f"head is {head!r}; expected None or one of {list(_BERT_HEADS)}.")
    found = {
        re.sub(
            r"(LayerNorm\.)gamma$", r"\1weight", re.sub(r"(LayerNorm\.)beta$", r"\1bias", name)
        ): of
        for name, of in _by_name(arrays, "bert.").items()
    }
    entries, unused, tied = _entries(_BERT, found, r"encoder\.layer\.(\d+)\."), _OTHER_HEADS, True
    if head is not None:
        entries = [entry._replace(ours=f"text/{entry.ours}") for entry in entries]
        entries += _BERT_HEADS[head]
    if head == "masked_tokens":
        unused = r"(cls\.seq_relationship|pooler)\..*"
        _drop_repeated(found, "cls.predictions.decoder.bias", "cls.predictions.bias")
        tied = _drop_repeated(found, _BERT_OUTPUT.theirs, "embeddings.word_embeddings.weight")
        entries += [] if tied else [_BERT_OUTPUT]
    _check_names("BERT", found, entries, f"{_BERT_UNUSED}|{unused}")
    sizes = _sizes(found, entries)
    config = _config(
        sizes,
        num_heads,
        num_layers=_count(found, r"encoder\.layer\.(\d+)\."),
        activation="gelu_exact",
        norm_position="post",
        norm_epsilon=1e-12,
        embedding_norm=True,
        token_types=sizes["U"][0],
        tie_embeddings=tied,
    )
    return config, _params(found, entries, num_heads)


def _by_name(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays without a prefix to their names."""
    found = {name.removeprefix(prefix): array for name, array in arrays.items()}
    if len(found) < len(arrays):
        raise ValueError(f"arrays: some have a name with {prefix!r} before it and without; which?")
    return found


def _count(found: dict[str, Array], layer: str) -> int:
    """How many layers there are; at least 1, so that a file without any is told what it lacks."""
    numbers = {match[1] for name in found if (match := re.match(layer, name))}
    return max(1, len(numbers))


def _entries(entries: list[_Entry], found: dict[str, Array], layer: str) -> list[_Entry]:
    """A map with the numbers of layers in place of i."""
    written = []
    for entry in entries:
        for i in range(_count(found, layer)) if ".i." in entry.theirs else [0]:
            theirs = entry.theirs.replace(".i.", f".{i}.")
            ours = entry.ours.replace("layer_i", f"layer_{i}")
            written.append(entry._replace(theirs=theirs, ours=ours))
    return written


def _drop_repeated(found: dict[str, Array], name: str, of: str) -> bool:
    """Takes out an array that repeats another; False if it is one of its own."""
    if name in found and not (of in found and np.array_equal(found[name], found[of])):
        return False
    found.pop(name, None)
    return True


def _check_names(model: str, found: dict[str, Array], entries: list[_Entry], unused: str) -> None:
    """Raises ValueError for names that are missing or have no place."""
    expected = {entry.theirs for entry in entries}
    missing = [entry.theirs for entry in entries if entry.theirs not in found]
    left = [name for name in found if name not in expected and not re.fullmatch(unused, name)]
    told = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for names, what in [(missing, "missing"), (left, "without a place")]
        if names
    ]
    if told:
        raise ValueError(f"arrays: of {model}'s names, {'; '.join(told)}.")


def _sizes(found: dict[str, Array], entries: list[_Entry]) -> checks.Sizes:
    """What the letters stand for, of the shapes of all arrays."""
    sizes: checks.Sizes = {}
    for entry in entries:
        array = found[entry.theirs]
        checks.check_axes(entry.theirs, array, entry.axes, sizes)
        checks.check_floating(entry.theirs, array)
        width, name = sizes["D"]
        sizes["3D"] = 3 * width, f"three times D of {name}"
    return sizes


def _config(sizes: checks.Sizes, num_heads: int, **settings: Any) -> TransformerConfig:
    """What both have in common."""
    return TransformerConfig(
        vocab_size=sizes["V"][0],
        features=sizes["D"][0],
        ff_features=sizes["F"][0],
        num_heads=num_heads,
        positions="learned",
        max_positions=sizes["P"][0],
        norm="layer",
        use_bias=True,
        scale_embeddings=False,
        **settings,
    )


def _params(found: dict[str, Array], entries: list[_Entry], num_heads: int) -> PyTree:
    """The arrays as parameters: float32, where and in the shape that the model has them."""
    params = {}
    for theirs, _, ours, turned in entries:
        array = jnp.asarray(found[theirs]).astype(jnp.float32)
        paths = ours.split()
        for path, part in zip(
            paths, jnp.split(array.T if turned else array, len(paths), -1), strict=True
        ):
            params[tuple(path.split("/"))] = _in_heads(path, part, num_heads)
    return unflatten_dict(params)


def _in_heads(path: str, array: Array, num_heads: int) -> Array:
    """With axes N and H in place of one, where the projections of an attention have them."""
    if re.search(r"/(query|key|value)/\w+$", path):
        return array.reshape(*array.shape[:-1], num_heads, -1)
    if path.endswith("/out/kernel"):
        return array.reshape(num_heads, -1, array.shape[-1])
    return array
