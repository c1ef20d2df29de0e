"""How a model came to what it told of a text: weights, mask and probabilities, seen."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.explorer import Attention, Labels, Sentence, Written, attentions
from flaxattn.masks import Mask, causal, full
from flaxattn.models import TransformerConfig
from flaxattn.models.one_stack import in_window
from flaxattn.tasks.modules import Module
from flaxattn.tasks.storing import Loaded
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["MOST_TOKENS", "explain"]

MOST_TOKENS = 128  # that are shown of a text
HIDDEN = 7  # of so many tokens one is hidden
OTHERS = 4  # of the most likely alternatives to a token or a tag
KIND = "Self-attention"


@dataclasses.dataclass(frozen=True)
class _Read:
    """A text as the model reads it.

    Attributes:
      ids: int [T].
      told: int [T], the number of what is told at each token; None: the likeliest.
      shown: what a number is called, told at a token.
      mask: which of the tokens may see which.
      telling: at how many of the tokens, the first, something is told; None: at all.
    """

    ids: np.ndarray
    told: np.ndarray | None
    shown: Callable[[int, int], str]
    mask: Mask
    telling: int | None = None


def explain(loaded: Loaded, text: str) -> Sentence:
    """What a model attends to in a text, and what it tells of it, for `flaxattn.explorer.page`.

    A language model tells each token by those before it; a tagger a tag at each token, in
    parentheses where a word goes on, since its first token alone counts; a classifier its label at
    a token before the text; what tells hidden tokens those of a text of which every seventh is
    hidden. Of a long text the beginning is shown.

    Args:
      loaded: a model of any task but `spans`, whose model is one of translation.

    Raises:
      ValueError if it is of another task, or the text is blank.
    """
    if loaded.task not in READ:
        raise ValueError(
            f"models of the task {loaded.task} are not explained; expected {' or '.join(READ)}."
        )
    if not text.strip():
        raise ValueError("a blank text cannot be explained; expected some words.")
    read = READ[loaded.task](loaded, text)
    architecture = dataclasses.replace(loaded.architecture, remat=False)
    module = loaded._replace(architecture=architecture).module
    logits, weights = jax.device_get(_look(module, loaded.params, read.ids[None]))
    told = (logits.argmax(axis=-1) if read.told is None else read.told)[: read.telling]
    names = [read.shown(int(number), q) for q, number in enumerate(told)]
    names += [""] * (len(read.ids) - len(names))
    seen = _attentions(weights, loaded, read, names)
    return Sentence(text, seen, written=_written(read, told, logits))


def _read_language(loaded: Loaded, text: str) -> _Read:
    tokenizer = loaded.tokenizer
    ids = tokenizer.encode([text])[0][:-1][:MOST_TOKENS]
    given = np.array([tokenizer.bos_id, *ids[:-1]], np.int32)
    return _Read(given, ids, lambda number, q: tokenizer.pieces([number])[0], causal())


def _read_labelling(loaded: Loaded, text: str) -> _Read:
    words = [ids[:-1] for ids in loaded.tokenizer.encode(text.split())]
    firsts = {*np.cumsum([0, *map(len, words)]).tolist()}

    def shown(number: int, q: int) -> str:
        label = loaded.labels[number]
        return label if q in firsts else f"({label})"

    ids = np.concatenate(words)[: min(MOST_TOKENS, loaded.sequence_length)]
    return _Read(ids, None, shown, full())


def _read_classification(loaded: Loaded, text: str) -> _Read:
    tokenizer = loaded.tokenizer
    ids = np.append(np.int32(tokenizer.bos_id), tokenizer.encode([text])[0])
    length = min(MOST_TOKENS, loaded.sequence_length)
    return _Read(ids[:length], None, lambda number, q: loaded.labels[number], full(), telling=1)


def _read_denoising(loaded: Loaded, text: str) -> _Read:
    tokenizer = loaded.tokenizer
    ids = tokenizer.encode([text])[0][: min(MOST_TOKENS, loaded.sequence_length)].copy()
    ids[len(ids) % HIDDEN :: HIDDEN] = tokenizer.mask_id
    return _Read(ids, None, lambda number, q: tokenizer.pieces([number])[0], full())


READ = {
    "language": _read_language,
    "labelling": _read_labelling,
    "classification": _read_classification,
    "denoising": _read_denoising,
}


@functools.partial(jax.jit, static_argnums=0)
def _look(module: Module, params: Params, tokens: jax.Array) -> tuple[jax.Array, PyTree]:
    """The logits of tokens [1, T], float32 [T, C], and the tree of sown weights."""
    apply: Any = module.apply
    logits, state = apply(
        {"params": params},
        tokens,
        segment_ids=jnp.ones_like(tokens),
        sow_weights=True,
        deterministic=True,
        mutable=["intermediates"],
    )
    return logits[0], state["intermediates"]


def _attentions(weights: PyTree, loaded: Loaded, read: _Read, names: list[str]) -> list[Attention]:
    """The attentions of all layers, with the mask that the model has."""
    architecture, length = loaded.architecture, len(read.ids)
    assert isinstance(architecture, TransformerConfig)
    mask = in_window(read.mask, architecture).dense(length, length)
    pieces = loaded.tokenizer.pieces(read.ids.tolist())
    found = attentions(weights, {"*": Labels(pieces, mask=mask, q_writes=names)})
    return [dataclasses.replace(x, kind=KIND) for x in found]


def _written(read: _Read, told: np.ndarray, logits: np.ndarray) -> list[Written]:
    """What is told at each token with its probability, and what was likely besides."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    rows = []
    for q, number in enumerate(told):
        best = [int(x) for x in (-shares[q]).argsort()[: OTHERS + 1] if x != number][:OTHERS]
        others = [(read.shown(x, q), float(shares[q, x])) for x in best]
        rows.append(Written(read.shown(int(number), q), float(shares[q, number]), others))
    return rows
