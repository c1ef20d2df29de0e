"""The front door of attention: checks, then the implementation that the table chooses."""

import dataclasses
import functools

import jax

from flaxattn.attention.arguments import check_arrays, check_dropout, make_options
from flaxattn.attention.dropout import seeds_for
from flaxattn.attention.options import Options
from flaxattn.attention.placement import in_place
from flaxattn.attention.table import IMPLEMENTATIONS, choose
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = ["attend", "attend_with_stats"]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score: Score | None = None,
    sinks: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Masked multi-head attention: softmax(score(query keyᵀ · scale + bias), where mask) value.

    What the mask hides is deleted: NaN or inf in hidden keys and values changes neither outputs
    nor gradients, and a row that may see nothing gives zero output and zero gradient. Query
    heads share key heads in groups of G = N // K (grouped-query attention, arXiv:2305.13245).

    Args:
      query: `[B, T, N, H]`, a floating dtype.
      key: `[B, S, K, H]`, the dtype of `query`; K divides N.
      value: `[B, S, K, H']`, the dtype of `query`.
      mask: a `Mask`; or its `BlockPlan`, which several calls can share; or booleans `[T, S]` or
        `[B, N, T, S]` in which an axis of 1 is shared; True = attend. None: every query sees every
        key.
      bias: float `[B, N, T, S]`, axes of 1 shared; added to the logits; it never hides.
      scale: multiplies the logits, one number or `[N]`, one for each head; default `H**-0.5`.
      score: a `Score`: what becomes of the logits after scale and bias, before the softmax, such as
        `softcap(50.0)`, `alibi()`, or several, joined by `>>`. Of hidden pairs it is not seen.
      sinks: a logit, or `[N]`, that takes part in the sum of the softmax alone: weights then sum to
        less than one (arXiv:2309.17453). A row that sees nothing stays zero.
      dropout_rate: the share of attention weights dropped, 0 <= rate < 1.
      dropout_key: a jax random key, needed where `dropout_rate` > 0; or `[B, N]` of them, as from
        `dropout_keys`, which `jax.shard_map` asks for.
      implementation: "dense" is the definition, with memory T·S; "blockwise" visits only blocks
        in which something is seen, with memory T + S; "fused" does so in kernels, on Hopper GPUs
        and TPUs, for what their tiles can compute: the error says why not. "auto" takes fused on
        Hopper GPUs where it serves the call, else blockwise where it is the faster one or a
        `BlockPlan` is given (on a CPU above about 360 x 360 logits per head: `explain` tells). All
        have derivatives of every order, forward and reverse.

    Returns:
      `[B, T, N, H']` in the dtype of `query`. Softmax and sums are taken in float32. With a mask
      a row that sees a query, key or value that is not finite is NaN; without one nothing is
      looked for, and inf and NaN go through the sums as they are.

    Raises:
      TypeError for a mask that is not boolean or dtypes that differ; ValueError for shapes that
      do not fit, heads that do not divide, a rate without a key, or an implementation that cannot
      serve the call. Each names the argument.

    >>> q = k = v = jnp.ones((2, 5, 4, 8))
    >>> attend(q, k, v, causal() & lengths(kv_lengths=np.array([5, 3]))).shape
    (2, 5, 4, 8)
    """
    mask = check_arrays(query, key, value, mask)
    options = make_options(
        query, key, bias=bias, scale=scale, score=score, sinks=sinks, dropout_rate=dropout_rate
    )
    keys = check_dropout(query, dropout_rate, dropout_key)
    name = choose(implementation, query, key, value, mask, options)
    output: jax.Array = _run(query, key, value, mask, options, keys, name=name, stats=False)[0]
    return output


def attend_with_stats(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score: Score | None = None,
    sinks: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`attend`, and the log-sum-exp of each row's logits, which merges parts of a sequence.

    Args and raises are those of `attend`.

    Returns:
      The output `[B, T, N, H']`, and `[B, T, N]` in float32: log Σ exp(logits) over the keys that
      a row sees and its sink, before dropout, -inf where there is none. Gradients flow through
      both. Where parts are to be merged, sinks are given to `merge`, or to one of them.

    >>> q = k = v = jnp.zeros((1, 4, 1, 8))
    >>> jnp.exp(attend_with_stats(q, k, v, causal())[1])[0, :, 0].round().tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    mask = check_arrays(query, key, value, mask)
    options = make_options(
        query, key, bias=bias, scale=scale, score=score, sinks=sinks, dropout_rate=dropout_rate
    )
    keys = check_dropout(query, dropout_rate, dropout_key)
    name = choose(implementation, query, key, value, mask, options)
    output, lse = _run(query, key, value, mask, options, keys, name=name, stats=True)
    return output, lse


@functools.partial(jax.jit, static_argnames=("name", "stats"))
def _run(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
    dropout_key: jax.Array | None,
    *,
    name: str,
    stats: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """The output, and with `stats` the log-sum-exp; what is not given back is not computed."""
    options = options.for_heads(query.shape[2])
    if dropout_key is not None:
        seeds = seeds_for(dropout_key, query.shape[0], query.shape[2])
        options = dataclasses.replace(options, seeds=seeds)
    output, lse = in_place(IMPLEMENTATIONS[name].attend)(query, key, value, mask, options)
    return output, lse if stats else None
