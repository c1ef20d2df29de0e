"""The front door of attention: checks, then the chosen implementation over batch and heads."""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.attention.dense import attend_head, head_weights
from flaxattn.attention.dropout import head_seeds
from flaxattn.attention.heads import over_batch_and_heads
from flaxattn.masks import Mask, from_dense

__all__ = ["Implementation", "attend", "attention_weights"]

Implementation = Literal["auto", "dense"]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Masked multi-head attention: softmax(query keyᵀ · scale + bias, where mask) value.

    What the mask hides is deleted: NaN or inf in hidden keys and values changes neither outputs
    nor gradients, and a row that may see nothing gives zero output and zero gradient. Query
    heads share key heads in groups of G = N // K (grouped-query attention, arXiv:2305.13245).

    Args:
      query: `[B, T, N, H]`, a floating dtype.
      key: `[B, S, K, H]`, the dtype of `query`; K divides N.
      value: `[B, S, K, H']`, the dtype of `query`.
      mask: a `Mask`, or booleans `[T, S]`, `[B, T, S]` or `[B, N, T, S]` in which an axis of 1
        is shared; True = attend. None: every query sees every key.
      bias: float `[B, N, T, S]`, axes of 1 shared; added to the logits; it never hides.
      scale: multiplies the logits; default `H**-0.5`.
      dropout_rate: the share of attention weights dropped, 0 <= rate < 1.
      dropout_key: a jax random key, needed where `dropout_rate` > 0.
      implementation: "dense" is the definition, with memory T·S; "auto" chooses: today, dense.

    Returns:
      `[B, T, N, H']` in the dtype of `query`. Softmax and sums are taken in float32.

    Raises:
      TypeError for a mask that is not boolean or dtypes that differ; ValueError for shapes that
      do not fit, heads that do not divide, a rate without a key. Each names the argument.

    >>> q = k = v = jnp.ones((2, 5, 4, 8))
    >>> attend(q, k, v, causal() & lengths(kv_lengths=np.array([5, 3]))).shape
    (2, 5, 4, 8)
    """
    sizes = _check_query_key(query, key)
    checks.check_axes("value", value, "B S K H'", sizes)
    if value.dtype != query.dtype:
        raise TypeError(f"value has dtype {value.dtype}, query {query.dtype}; expected the same.")
    checks.check_rate("dropout_rate", dropout_rate)
    if dropout_rate > 0 and dropout_key is None:
        raise ValueError(f"dropout_rate is {dropout_rate} but dropout_key is None; pass a key.")
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation is {implementation!r}; expected one of {get_args(Implementation)}."
        )
    mask = _check_mask(mask, sizes)
    _check_bias(bias, sizes)
    _check_scale(scale)
    dropout_key = dropout_key if dropout_rate > 0 else None
    return _attend_dense(query, key, value, mask, bias, scale, dropout_key, rate=dropout_rate)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    rows: Any = None,
    heads: Any = None,
) -> jax.Array:
    """The attention weights `attend` mixes values with, all of them or chosen rows and heads.

    Args:
      query, key, mask, bias, scale: as in `attend`.
      rows: int `[R]`, the query positions wanted, so that memory is R·S; None: all T.
      heads: int `[M]`, the query heads wanted; None: all N.

    Returns:
      `[B, M, R, S]` in float32; each row sums to one, or to zero where nothing is seen.

    Raises:
      TypeError and ValueError as `attend`.

    >>> q = k = jnp.ones((1, 3, 2, 8))
    >>> attention_weights(q, k, causal(), rows=np.array([1]), heads=np.array([0])).tolist()
    [[[[0.5, 0.5, 0.0]]]]
    """
    sizes = _check_query_key(query, key)
    mask = _check_mask(mask, sizes)
    _check_bias(bias, sizes)
    _check_scale(scale)
    rows, heads = _chosen(rows, query.shape[1]), _chosen(heads, query.shape[2])
    return _weights(query, key, mask, bias, scale, rows, heads)


def _check_query_key(query: jax.Array, key: jax.Array) -> dict[str, tuple[int, str]]:
    """Checks shapes and dtypes and returns what each letter stands for."""
    sizes: dict[str, tuple[int, str]] = {}
    checks.check_axes("query", query, "B T N H", sizes)
    checks.check_axes("key", key, "B S K H", sizes)
    checks.check_floating("query", query)
    if key.dtype != query.dtype:
        raise TypeError(f"key has dtype {key.dtype}, query {query.dtype}; expected the same.")
    num_heads, num_kv_heads = sizes["N"][0], sizes["K"][0]
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            f"query has {num_heads} heads and key {num_kv_heads}; the number of key/value heads "
            "must divide the number of query heads."
        )
    return sizes


def _check_mask(mask: Any, sizes: dict[str, tuple[int, str]]) -> Mask | None:
    """The mask as a `Mask` whose leaves fit B and N."""
    if mask is None:
        return None
    if not isinstance(mask, Mask):
        if not hasattr(mask, "dtype"):
            raise TypeError(f"mask is a {type(mask).__name__}; expected a Mask or a boolean array.")
        checks.check_boolean("mask", mask)
        _check_shared("mask", mask, sizes, {2: "TS", 3: "BTS"}.get(mask.ndim, "BNTS"))
        mask = from_dense(mask)
    mask.check_length(sizes["T"][0], sizes["S"][0])
    for letter, size in zip("BN", mask.lead, strict=False):
        if size not in (1, sizes[letter][0]):
            raise ValueError(
                f"mask {mask} has leading axes {mask.lead}, that is {letter} = {size}; "
                f"but query has {letter} = {sizes[letter][0]}."
            )
    return mask


def _check_bias(bias: Any, sizes: dict[str, tuple[int, str]]) -> None:
    if bias is not None:
        checks.check_floating("bias", bias)
        _check_shared("bias", bias, sizes, "BNTS")


def _check_scale(scale: Any) -> None:
    if scale is not None and jnp.ndim(scale) != 0:
        raise ValueError(f"scale has shape {jnp.shape(scale)}; expected a single number.")


def _check_shared(name: str, array: Any, sizes: dict[str, tuple[int, str]], axes: str) -> None:
    wanted = [sizes[letter][0] for letter in axes]
    if array.ndim != len(axes) or any(
        n not in (1, size) for n, size in zip(array.shape, wanted, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; expected [{', '.join(axes)}] = {wanted}, "
            "or 1 in place of any of them."
        )


@functools.partial(jax.jit, static_argnames="rate")
def _attend_dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None,
    bias: jax.Array | None,
    scale: Any,
    dropout_key: jax.Array | None,
    *,
    rate: float,
) -> jax.Array:
    """`attend_head` over batch and heads."""

    def head(q: Any, k: Any, v: Any, mask: Any, bias: Any, seeds: Any) -> jax.Array:
        return attend_head(
            q, k, v, mask, bias=bias, scale=scale, dropout_rate=rate, dropout_seeds=seeds
        )

    batch, q_len, num_heads, _ = query.shape
    dense = None if mask is None else _four_axes(mask.dense(q_len, key.shape[1]))
    seeds = None if dropout_key is None else head_seeds(dropout_key, batch, num_heads)
    return over_batch_and_heads(head, query, key, value, dense, bias, seeds)


@jax.jit
def _weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | None,
    bias: jax.Array | None,
    scale: Any,
    rows: jax.Array,
    heads: jax.Array,
) -> jax.Array:
    """`head_weights` of chosen rows and heads -> [B, M, R, S]."""

    def head(q: Any, k: Any, _: Any, mask: Any, bias: Any) -> jax.Array:
        return head_weights(q, k, mask, bias=bias, scale=scale)

    dense = None
    if mask is not None:
        dense = _pick(_four_axes(mask.outer(rows, jnp.arange(key.shape[1]))), heads, axis=1)
    if bias is not None:
        bias = _pick(_pick(bias, heads, axis=1), rows, axis=2)
    group = query.shape[2] // key.shape[2]
    query, key = query[:, rows][:, :, heads], key[:, :, heads // group]
    return over_batch_and_heads(head, query, key, key, dense, bias).swapaxes(1, 2)


def _chosen(indices: Any, size: int) -> jax.Array:
    """The indices along an axis, all of them by default; negative ones count from its end."""
    indices = jnp.arange(size) if indices is None else jnp.asarray(indices)
    return jnp.where(indices < 0, indices + size, indices)


def _four_axes(dense: jax.Array) -> jax.Array:
    """[T, S], [B, T, S] or [B, N, T, S] -> [B, N, T, S], 1 where shared."""
    return jnp.expand_dims(dense, {2: (0, 1), 3: (1,), 4: ()}[dense.ndim])


def _pick(array: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    """`array` at `indices` of `axis`, unless that axis is shared."""
    return array if array.shape[axis] == 1 else jnp.take(array, indices, axis=axis)
