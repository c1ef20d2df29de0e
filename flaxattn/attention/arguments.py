"""What `attend` is given, checked before anything is computed; errors name the argument."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks
from flaxattn.attention.dropout import check_rate, check_varies
from flaxattn.attention.options import Options
from flaxattn.checks import Sizes
from flaxattn.masks import BlockPlan, Mask, from_dense
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = [
    "check_arrays",
    "check_bias",
    "check_dropout",
    "check_drawable",
    "check_indices",
    "check_is_score",
    "check_mask",
    "check_of_heads",
    "check_qkv",
    "check_query_key",
    "make_options",
]


def check_arrays(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask | BlockPlan | Array | None
) -> Mask | BlockPlan | None:
    """Checks the arrays of a call, and its mask against them; gives the mask back as a `Mask`."""
    return check_mask(mask, check_qkv(query, key, value))


def check_qkv(query: jax.Array, key: jax.Array, value: jax.Array) -> Sizes:
    """Checks shapes and dtypes of the three and returns what each letter stands for."""
    sizes = check_query_key(query, key)
    checks.check_axes("value", value, "B S K H'", sizes)
    if value.dtype != query.dtype:
        raise TypeError(f"value has dtype {value.dtype}, query {query.dtype}; expected the same.")
    return sizes


def check_drawable(mask: object, q_len: int, kv_len: int) -> None:
    """Raises TypeError unless `mask` is a `Mask` and the lengths are integers, ValueError below 0.

    Of an array or a plan no plan can be drawn.
    """
    if not isinstance(mask, Mask):
        raise TypeError(
            f"mask is a {type(mask).__name__}; expected a Mask. Wrap booleans in from_dense(array)."
        )
    checks.check_length("q_len", q_len)
    checks.check_length("kv_len", kv_len)


def make_options(
    query: jax.Array,
    key: jax.Array,
    *,
    bias: jax.Array | None,
    scale: float | jax.Array | None,
    score: Score | None,
    sinks: float | jax.Array | None,
    dropout_rate: float = 0.0,
    sizes: Sizes | None = None,
) -> Options:
    """The checked options of a call, still without seeds, the score as it was given.

    `sizes` are those that they are to fit; None: those of query and key.
    """
    sizes = check_query_key(query, key) if sizes is None else sizes
    check_bias(bias, sizes)
    check_of_heads("scale", scale, sizes["N"][0])
    check_of_heads("sinks", sinks, sizes["N"][0])
    _check_score(score, sizes)
    rate = check_rate("dropout_rate", dropout_rate)
    return Options(bias, scale, score, sinks, dropout_rate=rate)


def check_query_key(query: jax.Array, key: jax.Array) -> Sizes:
    """Checks shapes and dtypes and returns what each letter stands for."""
    sizes: Sizes = {}
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


def check_mask(mask: Mask | BlockPlan | Array | None, sizes: Sizes) -> Mask | BlockPlan | None:
    """The mask as a `Mask`, or plan of one, whose leaves fit B and N."""
    if mask is None:
        return None
    if isinstance(mask, BlockPlan):
        for letter, length in (("T", mask.q_len), ("S", mask.kv_len)):
            if length != sizes[letter][0]:
                raise ValueError(
                    f"mask is a plan for {letter} = {length}, but {sizes[letter][1]} has "
                    f"{letter} = {sizes[letter][0]}; draw it with mask.plan({sizes['T'][0]}, "
                    f"{sizes['S'][0]}, ...)."
                )
        check_mask(mask.mask, sizes)
        return mask
    if not isinstance(mask, Mask):
        mask = _mask_of_array(mask, sizes)
    mask.check_length(sizes["T"][0], sizes["S"][0])
    _check_lead("mask", mask, sizes)
    return mask


def _mask_of_array(array: object, sizes: Sizes) -> Mask:
    """A boolean array as a `Mask`.

    Raises TypeError for what is none, ValueError where it does not fit or can be read in two ways.
    """
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(
            f"mask is a {checks.type_of(array)}; expected a Mask or a boolean array of jax or "
            "NumPy, which np.asarray makes."
        )
    checks.check_boolean("mask", array)
    if array.ndim == 3 and array.shape[0] != 1:
        raise ValueError(
            f"mask has shape {array.shape} of rank 3, which is [B, T, S] to some and [N, T, S] to "
            "jax.nn and flax; give mask[:, None] for a mask of each example, mask[None] for one of "
            "each head."
        )
    _check_shared("mask", array, sizes, {2: "TS", 3: "BTS"}.get(array.ndim, "BNTS"))
    return from_dense(array)


def check_bias(bias: Array | None, sizes: Sizes) -> None:
    """Raises TypeError or ValueError unless `bias` is floating and [B, N, T, S], 1 where shared."""
    if bias is not None:
        checks.check_array("bias", bias)
        checks.check_floating("bias", bias)
        _check_shared("bias", bias, sizes, "BNTS")


def check_of_heads(name: str, numbers: float | jax.Array | None, num_heads: int) -> None:
    """Raises TypeError unless real or None, ValueError unless one number or [N]."""
    if numbers is None:
        return
    if not _is_real(numbers):
        raise TypeError(f"{name} is {numbers!r}; expected a real number, or an array [N] of them.")
    if jnp.shape(numbers) not in ((), (num_heads,)):
        raise ValueError(
            f"{name} has shape {jnp.shape(numbers)}; expected a single number or [N] = "
            f"[{num_heads}]."
        )


def check_is_score(score: object) -> None:
    """Raises TypeError unless `score` is a `Score` or None."""
    if not isinstance(score, Score | None):
        kind = score.__name__ if isinstance(score, type) else checks.type_of(score)
        raise TypeError(
            f"score is {kind}; expected a Score, such as softcap(50.0), or score(fn, *arrays) of a "
            "function fn(logit, q_idx, kv_idx, *arrays)."
        )


def _check_score(score: Score | None, sizes: Sizes) -> None:
    """Raises TypeError unless `score` is a `Score` or None, ValueError where B or N do not fit."""
    check_is_score(score)
    if score is None:
        return
    score.check_length(sizes["T"][0], sizes["S"][0])
    _check_lead("score", score, sizes)


def _check_lead(name: str, given: Mask | Score, sizes: Sizes) -> None:
    """Raises ValueError where the arrays inside are of other examples or heads than the query."""
    for letter, size in zip("BN", given.lead, strict=False):
        if size not in (1, sizes[letter][0]):
            raise ValueError(
                f"{name} {given} has leading axes {given.lead}, that is {letter} = {size}; but "
                f"query has {letter} = {sizes[letter][0]}. A single leading axis is that of "
                "examples in a mask, of heads in the numbers and tables of a score."
            )


def _is_real(value: object) -> bool:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return value.dtype.kind in "iu" or bool(jnp.issubdtype(value.dtype, jnp.floating))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or hasattr(value, "__jax_array__")


def check_dropout(
    query: jax.Array, rate: float, key: jax.Array | None, but: jax.Array | None = None
) -> jax.Array | None:
    """The key if there is a rate, else None.

    Over devices that `but` varies over a key may be the same.

    Raises:
      TypeError for what is no key; ValueError where a key is missing, has axes other than [B, N],
      or would drop the same weights on every device.
    """
    if key is not None:
        _check_key(key, query.shape[0], query.shape[2])
    if not rate > 0:
        return None
    if key is None:
        raise ValueError(f"dropout_rate is {rate} but dropout_key is None; pass a key.")
    check_varies("dropout_key", key, query, but)
    return key


def _check_key(key: jax.Array, batch: int, num_heads: int) -> None:
    """Raises an error unless these are typed keys, or raw ones of the default kind."""
    hint = "expected jax.random.key(seed), or [B, N] of them as from dropout_keys"
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"dropout_key is a {type(key).__name__}; {hint}.")
    shape = tuple(key.shape)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raw = jax.eval_shape(jax.random.PRNGKey, 0)  # of the kind that is configured
        if key.dtype != raw.dtype or shape[-1:] != raw.shape:
            raise TypeError(f"dropout_key is {key.dtype}{list(shape)}; {hint}.")
        shape = shape[:-1]
    if shape and not (len(shape) == 2 and shape[0] in (1, batch) and shape[1] in (1, num_heads)):
        raise ValueError(
            f"dropout_key holds keys {list(shape)}; expected one, or [B, N] = "
            f"[{batch}, {num_heads}]."
        )


def check_indices(name: str, indices: Array, letter: str, size: int) -> None:
    """Raises TypeError unless `indices` are int [n], ValueError unless known ones are in range."""
    checks.check_integer(name, indices)
    if indices.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(indices.shape)}; expected one axis.")
    if isinstance(indices, jax.core.Tracer):
        return
    known = np.asarray(indices)
    outside = known[(known < -size) | (known >= size)]
    if outside.size:
        raise ValueError(
            f"{name} holds {outside[0]}; expected {-size} to {size - 1}, for {letter} = {size}."
        )


def _check_shared(name: str, array: Array, sizes: Sizes, axes: str) -> None:
    wanted = [sizes[letter][0] for letter in axes]
    if array.ndim != len(axes) or any(
        n not in (1, size) for n, size in zip(array.shape, wanted, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; expected [{', '.join(axes)}] = {wanted}, "
            "or 1 in place of any of them."
        )
