"""Whether the fused kernels are right on this device: dense in float64, on the host, is the judge.

Errors are means over what is finite, and may be 1.1 times those of dense in the same precision on
the device (PyTorch's bar for FlexAttention); where one gives NaN, so must the other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from documents import documents

import flaxattn
from flaxattn import causal, lengths, same_segment, sliding_window, valid

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

__all__ = ["CHECKS", "check"]

BATCH, HEADS, KV_HEADS, RATE = 2, 4, 2, 0.2
LARGEST_SHARE = 1.1  # of the error of dense
FLOOR = 1e-6  # an error that nobody minds, of numbers of about 1
FEW, OF_FEW = 100, 2**-8  # the mean of so few errors is chance: of these, a share of their size


@dataclasses.dataclass(frozen=True)
class Check:
    """A call of `attend`; what `learned` holds has gradients, as the three inputs have."""

    mask: Callable[[], Any] = causal
    lengths: tuple[int, int] = (600, 600)  # T, S: no multiples of a block
    widths: tuple[int, int] = (128, 128)  # H, H'
    learned: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: Callable[..., dict[str, Any]] = lambda learned: learned
    dtype: Any = jnp.bfloat16
    garbage: bool = False  # NaN and inf in some queries, keys and values, hidden and seen
    rate: float = 0.0


def _ids() -> Any:
    return np.concatenate([documents(600, 5, 0.5, seed) for seed in range(BATCH)])


def _checks() -> dict[str, Check]:
    rng = np.random.default_rng(0)
    slopes, caps = np.float32(2.0) ** -np.arange(1, HEADS + 1), np.float32([20, 30, 40, 50])
    widths = np.array([[16, 64, 128, 300]], np.int32)
    flags = rng.random((BATCH, 600)) < 0.4
    few, table = np.array([37, 600], np.int32), rng.random((BATCH, 1, 600, 600)) < 0.5
    bias = rng.standard_normal((BATCH, HEADS, 600, 600), np.float32)

    def older(q: Any, k: Any, age: Any) -> Any:
        return age[q] >= age[k]

    masks = {
        "no mask": lambda: None,
        "causal": causal,
        "window": lambda: sliding_window(100, 0),
        "window of each head": lambda: causal() & sliding_window(widths),
        "documents": lambda: causal() & same_segment(_ids()),
        "prefix per document": lambda: (causal() | valid(flags)) & same_segment(_ids()),
        "ragged": lambda: lengths(few, few),
        "nothing is seen": lambda: lengths(kv_lengths=0),
        "a rule of one's own": lambda: flaxattn.where(older, rng.integers(0, 9, 600)),
    }
    checks = {name: Check(mask) for name, mask in masks.items()}
    checks |= {f"causal, H={h}": Check(widths=(h, h)) for h in (64, 256)}
    checks |= {
        "T=1": Check(masks["no mask"], lengths=(1, 600)),
        "T=130, S=600": Check(lambda: causal().shift(470, 0), lengths=(130, 600)),
        "float16": Check(dtype=jnp.float16),
        "own width of values": Check(widths=(128, 64)),
        "scale": Check(learned={"scale": np.float32([0.05, 0.1, -0.1, 0.2])}),
        "sinks": Check(learned={"sinks": np.float32([0.0, 1.0, -1.0, 2.0])}),
        "soft cap": Check(options=lambda _: {"score": flaxattn.softcap(30.0)}),
        "learned soft cap": Check(
            learned={"cap": caps}, options=lambda own: {"score": flaxattn.softcap(own["cap"])}
        ),
        "learned ALiBi": Check(
            learned={"slopes": slopes},
            options=lambda own: {"score": flaxattn.alibi(own["slopes"])},
        ),
        "ALiBi, documents": Check(
            masks["documents"], options=lambda _: {"score": flaxattn.alibi()}
        ),
        "dropout": Check(masks["documents"], rate=RATE),
        "dropout and soft cap": Check(
            rate=RATE, options=lambda _: {"score": flaxattn.softcap(30.0)}
        ),
        "garbage": Check(masks["documents"], garbage=True),
        "garbage, window": Check(masks["window"], garbage=True),
        "garbage, hidden": Check(lambda: lengths(few, np.array([5, 50])), garbage=True),
        "garbage, ReLU": Check(
            masks["documents"],
            garbage=True,
            options=lambda _: {"score": flaxattn.score(lambda x, q, k: jnp.maximum(x, 0.0))},
        ),
        "from_dense": Check(lambda: flaxattn.from_dense(table)),
        "from_dense, documents": Check(lambda: ~flaxattn.from_dense(table) & masks["documents"]()),
        "bias": Check(learned={"bias": bias}),
        "bias of keys": Check(masks["documents"], learned={"bias": bias[:, :1, :1]}),
        "bias that stays": Check(options=lambda _: {"bias": bias}),
        "bias of keys that stays": Check(
            masks["documents"], options=lambda _: {"bias": bias[:, :1, :1]}
        ),
    }
    return checks


CHECKS = _checks()


class Inputs(NamedTuple):
    """Of a check."""

    arrays: tuple[Any, ...]  # query, key, value
    learned: dict[str, Any]
    cotangent: Any


def _inputs(check: Check) -> Inputs:
    rng = np.random.default_rng(1)
    (t, s), (h, width) = check.lengths, check.widths
    shapes = ((t, HEADS, h), (s, KV_HEADS, h), (s, KV_HEADS, width), (t, HEADS, width))
    q, k, v, cotangent = (
        np.asarray(rng.standard_normal((BATCH, *shape)), check.dtype) for shape in shapes
    )
    if check.garbage:
        k[0, 5], v[1, 50], k[1, -1] = np.nan, np.inf, -np.inf
        q[0, 300, 1], q[1, -1, 0, 3] = np.nan, np.inf
    return Inputs((q, k, v), check.learned, cotangent)


def _pass(
    check: Check, implementation: str, arrays: tuple[Any, ...], learned: Any, cotangent: Any
) -> dict[str, Any]:
    """Output, log-sum-exp and gradients, by name."""
    dropped = {"dropout_rate": check.rate, "dropout_key": jax.random.key(0)} if check.rate else {}

    def attend(arrays: tuple[Any, ...], learned: Any) -> tuple[jax.Array, jax.Array]:
        options = check.options(learned) | dropped
        call = functools.partial(flaxattn.attend_with_stats, implementation=implementation)
        output, lse = call(*arrays, check.mask(), **options)
        return output, lse

    (output, lse), pull = jax.vjp(attend, arrays, learned)
    d_arrays, d_learned = pull((cotangent, jnp.zeros_like(lse)))
    names = ("query", "key", "value")
    return {"output": output, "lse": lse, **dict(zip(names, d_arrays, strict=True)), **d_learned}


def _found(check: Check, implementation: str, inputs: Inputs) -> dict[str, np.ndarray]:
    given = jax.tree.map(jnp.asarray, inputs)
    found = jax.jit(functools.partial(_pass, check, implementation))(*given)
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def _judge(check: Check, inputs: Inputs) -> dict[str, np.ndarray]:
    """Dense in float64 on the host."""
    with enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        given = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)
        return _found(check, "dense", Inputs(*given))


def check(name: str, implementation: str = "fused") -> dict[str, Any]:
    """The row of a check: the shares of the error of dense, and what is wrong, in words."""
    chosen = CHECKS[name]
    inputs = _inputs(chosen)
    mine, dense = (_found(chosen, name, inputs) for name in (implementation, "dense"))
    exact = _judge(chosen, inputs)
    shares, wrong = {}, []
    for part, judge in exact.items():
        if not np.array_equal(np.isnan(mine[part]), np.isnan(dense[part])):
            wrong.append(f"{part}: NaN in other places")
        if not np.array_equal(np.isinf(mine[part]), np.isinf(dense[part])):
            wrong.append(f"{part}: inf in other places")
        error, of_dense = (_error(x[part], judge) for x in (mine, dense))
        shares[part] = error / max(of_dense, FLOOR)
        chance = OF_FEW * float(np.abs(judge).mean()) if judge.size < FEW else FLOOR
        if error > max(LARGEST_SHARE * of_dense, chance):
            wrong.append(f"{part}: error {error:.2g}, of dense {of_dense:.2g}")
    if chosen.rate and not _same_bits(chosen, implementation):
        wrong.append("other weights are dropped")
    return {"shares": shares, "wrong": wrong}


def _error(x: np.ndarray, judge: np.ndarray) -> float:
    """The mean distance, over what is finite."""
    finite = np.isfinite(x) & np.isfinite(judge)
    return float(np.abs(x[finite] - judge[finite]).mean()) if finite.any() else 0.0


def _same_bits(check: Check, implementation: str) -> bool:
    """Whether the same weights are dropped: keys are told apart by values that are one-hot."""
    (q, k, v), *_ = _inputs(check)
    length, width = v.shape[1], v.shape[3]
    for start in range(0, length, width):
        one_hot = np.zeros_like(v)
        keys = np.arange(start, min(start + width, length))
        one_hot[:, keys, :, keys - start] = 1
        kept = []
        for name in (implementation, "dense"):
            output = flaxattn.attend(
                *map(jnp.asarray, (np.zeros_like(q), k, one_hot)),
                check.mask(),
                dropout_rate=check.rate,
                dropout_key=jax.random.key(0),
                implementation=name,
            )
            kept.append(np.asarray(output != 0))
        if not np.array_equal(*kept):
            return False
    return True
