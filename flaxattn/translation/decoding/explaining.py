"""Translations and how they were found: weights, masks, probabilities and other hypotheses.

Nothing is kept while translating: one pass over source and translation computes the weights anew.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.explorer import Attention, Hypothesis, Labels, Sentence, Written, attentions
from flaxattn.models import EncoderDecoder, build_masks
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.teacher_forcing import teacher_forced
from flaxattn.translation.decoding.translator import Translation, Translator, rounded
from flaxattn.types import PyTree

__all__ = [
    "CROSS_ATTENTION",
    "MOST_TEXTS",
    "MOST_TOKENS",
    "explain",
    "explain_translations",
    "hypotheses_sought",
]

MOST_TEXTS, MOST_TOKENS = 32, 128  # on one page; tokens of a source, or of a translation
MOST_HYPOTHESES = 10
OTHERS = 4  # of the most likely alternatives to a token
CROSS_ATTENTION = "Cross-attention"
KINDS = {
    "encoder/layer/self_attention": "Encoder self-attention",
    "decoder/layer/self_attention": "Decoder self-attention",
    "decoder/layer/cross_attention": CROSS_ATTENTION,
}


def explain(
    model: EncoderDecoder,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: DecodingConfig = DecodingConfig(),
) -> list[Sentence]:
    """The best translation of each text and how it was found, for `flaxattn.explorer.page`.

    Args:
      model, params, tokenizer: as `loading.load` gives them.
      config: how translations are sought.

    Returns:
      A sentence for each text that is not blank; texts and translations of more than MOST_TOKENS
      tokens are left out with a warning.

    Raises:
      ValueError if there are more than MOST_TEXTS texts.
    """
    translator = Translator(model, params, tokenizer, config)
    found = translator.translate(texts, n_best=hypotheses_sought(config))
    return explain_translations(model, params, tokenizer, texts, found, config)


def hypotheses_sought(config: DecodingConfig) -> int:
    """As many as there are beams, at no extra cost; one where translations are sampled."""
    return 1 if config.sampling else min(config.beam_size, MOST_HYPOTHESES)


def explain_translations(
    model: EncoderDecoder,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    translations: Sequence[Sequence[Translation]],
    config: DecodingConfig = DecodingConfig(),
) -> list[Sentence]:
    """As `explain`, of translations that `Translator.translate` found with the same `config`."""
    if len(texts) > MOST_TEXTS:
        raise ValueError(
            f"{len(texts)} texts; at most {MOST_TEXTS} can be explained together. Give fewer."
        )
    model = EncoderDecoder(dataclasses.replace(model.config, remat=False), model.pad_id)
    sentences = []
    for number, (text, found) in enumerate(zip(texts, translations, strict=True), 1):
        if not text.strip():
            continue
        source, _ = tokenizer.encode_start(
            tokenizer.normalize_source(text), config.max_source_length
        )
        target = np.array(found[0].tokens, np.int32)
        if why := _obstacle(source, target):
            warnings.warn(f"text {number} is not explained: {why}.", stacklevel=2)
            continue
        sentences.append(_explained(model, params, tokenizer, text, found, source, target))
    return sentences


def _obstacle(source: np.ndarray, target: np.ndarray) -> str:
    if not len(target):
        return "no translation was found"
    for name, ids in (("it", source), ("its translation", target)):
        if len(ids) > MOST_TOKENS:
            return f"{name} has {len(ids)} tokens, and at most {MOST_TOKENS} can be shown"
    return ""


def _explained(
    model: EncoderDecoder,
    params: Params,
    tokenizer: Tokenizer,
    text: str,
    found: Sequence[Translation],
    source: np.ndarray,
    target: np.ndarray,
) -> Sentence:
    seen = _look(
        model,
        params,
        _padded(source, model.pad_id),
        _padded(target, model.pad_id),
        bos_id=tokenizer.bos_id,
    )
    weights, *probabilities = jax.device_get(seen)
    return Sentence(
        text,
        _attentions(weights, tokenizer, source, target),
        found[0].text,
        _written(tokenizer, target, *probabilities),
        [Hypothesis(x.text, x.score, x.log_prob) for x in found if x.tokens],
    )


@functools.partial(jax.jit, static_argnames=("model", "bos_id"))
def _look(
    model: EncoderDecoder,
    params: Params,
    source: jax.Array,
    target: jax.Array,
    *,
    bos_id: int,
) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
    """One teacher-forced pass over a source [1, S] and its translation [1, T].

    Returns:
      The tree of sown weights; the probability of each token of `target` [T]; those of the most
      likely tokens, and their ids, [T, OTHERS + 1].
    """
    logits, sown = teacher_forced(model, params, source, target, bos_id=bos_id, sow_weights=True)
    shares = jax.nn.softmax(logits[0], axis=-1)
    written = jnp.take_along_axis(shares, target[0][:, None], axis=1)[:, 0]
    best, ids = jax.lax.top_k(shares, min(OTHERS + 1, shares.shape[-1]))
    return sown, written, best, ids


def _padded(ids: np.ndarray, pad_id: int) -> np.ndarray:
    """[length] -> [1, T], so long that few lengths are compiled for."""
    return np.pad(ids, (0, rounded(len(ids)) - len(ids)), constant_values=pad_id)[None]


def _attentions(
    weights: PyTree, tokenizer: Tokenizer, source: np.ndarray, target: np.ndarray
) -> list[Attention]:
    """The attentions on the tokens alone, without padding, and what `build_masks` lets them see."""
    s_len, t_len = len(source), len(target)
    masks = build_masks(jnp.ones((1, s_len), jnp.int32), jnp.ones((1, t_len), jnp.int32))
    read, written = (tokenizer.pieces(ids.tolist()) for ids in (source, target))
    given = [*tokenizer.pieces([tokenizer.bos_id]), *written[:-1]]
    labels = {
        "encoder/*": Labels(read, mask=masks.encoder.dense(s_len, s_len)[0]),
        "*/cross_attention": Labels(given, read, masks.cross.dense(t_len, s_len)[0], written),
        "decoder/*": Labels(given, mask=masks.decoder.dense(t_len, t_len)[0], q_writes=written),
    }
    order, found = list(KINDS), attentions(weights, labels)
    found.sort(key=lambda attention: (order.index(attention.kind), attention.layer))
    return [dataclasses.replace(x, kind=KINDS[x.kind]) for x in found]


def _written(
    tokenizer: Tokenizer,
    target: np.ndarray,
    shares: np.ndarray,
    best: np.ndarray,
    ids: np.ndarray,
) -> list[Written]:
    tokens = []
    for i, piece in enumerate(tokenizer.pieces(target.tolist())):
        names = tokenizer.pieces(ids[i].tolist())
        others = zip(names, best[i].tolist(), ids[i] != target[i], strict=True)
        instead = [(name, share) for name, share, is_other in others if is_other]
        tokens.append(Written(piece, float(shares[i]), instead[:OTHERS]))
    return tokens
