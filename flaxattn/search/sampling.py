"""Sequences drawn at random, token by token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxattn.search.arguments import check_count, check_keys, check_range, check_state, make_rules
from flaxattn.search.constraints import Constraint
from flaxattn.search.decode_step import DecodeStep, State, repeat_rows
from flaxattn.search.generation import generate
from flaxattn.search.hypotheses import Hypotheses
from flaxattn.search.rules import Lengths, SpecialTokens
from flaxattn.search.top_k import top_k as find_top_k
from flaxattn.types import Array

__all__ = ["keep_likely", "sample"]


def sample(
    decode_step: DecodeStep[State],
    state: State,
    keys: jax.Array,
    *,
    batch_size: int,
    special_tokens: SpecialTokens,
    lengths: Lengths,
    num_samples: int = 1,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    constraints: Sequence[Constraint] = (),
) -> Hypotheses:
    """Sequences drawn at random, token by token, in the order of drawing: not the best first.

    A token is drawn from softmax(logits / temperature) over the tokens allowed there; with `top_k`
    only over the k most likely of them; with `top_p` only over the nucleus of these (Holtzman et
    al. 2020, arXiv:1904.09751): the smallest set of most likely tokens whose probabilities add up
    to p. Tokens as likely as the last one of a set belong to it, too. The log-probabilities
    returned are the model's own, whatever the temperature.

    Sample i of an example is drawn with `fold_in(key, i)` of the example's key, and each of its
    tokens with that key folded with the token's index: neither the rest of the batch nor
    `num_samples` changes it.

    Args:
      keys: keys `[B]`, one per example, such as `jax.random.split(key, B)`; or fold each example's
        number in the whole data set into one key.
      num_samples: n; `decode_step` reads R = B * n rows.
      temperature: above 0; near 0, `greedy`.
      top_k: 1 or more; static.
      top_p: above 0, at most 1.
      others: those of `beam_search`; the length penalty affects only the scores.

    Raises:
      TypeError or ValueError naming the argument that does not fit.

    >>> table = jnp.log(jnp.array([[0, 0.2, 0.4, 0.4]]))
    >>> ids, lengths = SpecialTokens(bos_id=0, eos_id=1, pad_id=0), Lengths(max_length=4)
    >>> found = sample(lambda tokens, index, state: (table, state), (),
    ...     jax.random.split(jax.random.key(5), 1), batch_size=1, special_tokens=ids,
    ...     lengths=lengths, top_k=2)
    >>> bool(jnp.isin(found.tokens[0, 0, :3], jnp.array([2, 3])).all())
    True
    """
    rules = make_rules(batch_size, special_tokens, lengths)
    check_count("num_samples", num_samples)
    check_range("temperature", temperature, open_below=True)
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None:
        check_range("top_p", top_p, most=1.0, open_below=True)
    numbers = jnp.tile(jnp.arange(num_samples), batch_size)
    keys = repeat_rows(check_keys(keys, batch_size), num_samples)
    keys = jax.vmap(jax.random.fold_in)(keys, numbers)
    rules = rules._replace(
        max_length=repeat_rows(rules.max_length, num_samples),
        min_length=repeat_rows(rules.min_length, num_samples),
    )
    state = repeat_rows(check_state(state, batch_size), num_samples)

    def draw(log_probs: jax.Array, so_far: jax.Array, index: jax.Array) -> jax.Array:
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        below = log_probs - log_probs.max(axis=-1, keepdims=True)  # no temperature makes 0 infinite
        logits = keep_likely(below / jnp.asarray(temperature, jnp.float32), top_k, top_p)
        return jax.vmap(jax.random.categorical)(now, logits)

    shape = (batch_size, num_samples)
    return generate(decode_step, state, draw, rules, shape=shape, constraints=constraints)


def keep_likely(logits: jax.Array, top_k: int | None, top_p: float | Array | None) -> jax.Array:
    """[R, V] with -inf for tokens not among the k most likely or not in their nucleus.

    >>> keep_likely(jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]])), 3, 0.7)
    Array([[      -inf, -0.9162...,       -inf, -1.2039...]], dtype=float32)
    """
    if top_k is None and top_p is None:
        return logits
    vocab_size = logits.shape[-1]
    best, _ = find_top_k(logits, min(top_k or vocab_size, vocab_size))
    if top_p is not None:
        probs = jax.nn.softmax(best, axis=-1)
        before, p = jnp.cumsum(probs, axis=-1) - probs, jnp.asarray(top_p, jnp.float32)
        best = jnp.where((before < p) | (p == 1.0), best, jnp.inf)
    return jnp.where(logits >= best.min(axis=-1, keepdims=True), logits, -jnp.inf)
