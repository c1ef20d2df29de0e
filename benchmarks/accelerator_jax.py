"""What `accelerator.py` runs in jax: flaxattn, and what else there is on its devices."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from accelerator_cases import Case
from accelerator_profile import kernel_times
from accelerator_timing import SETS, timed

import flaxattn
from flaxattn import Mask, causal, lengths, same_segment, sliding_window, valid
from flaxattn.attention.fused.chip import chip
from flaxattn.attention.fused.passes import kernels_of
from flaxattn.attention.table import IMPLEMENTATIONS

__all__ = ["CONTENDERS", "about", "attention", "blocks", "compiled", "healthy", "product"]

Attend = Callable[..., jax.Array]  # of query, key, value and the arrays of the mask


def about() -> dict[str, Any]:
    """The device, and versions."""
    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "flaxattn": flaxattn.__version__}
    return {"device": device.device_kind, "platform": device.platform, "versions": versions}


def healthy() -> bool:
    """Whether the device still computes, after something has failed."""
    try:
        return float(jnp.ones(2).sum()) == 2.0
    except Exception:
        return False


def mask_of(case: Case, arrays: dict[str, Any]) -> Mask:
    """The mask of a case, in flaxattn."""
    if case.mask == "causal":
        return causal()
    if case.mask == "window":
        return sliding_window(case.window, 0)
    if case.mask == "documents":
        return causal() & same_segment(arrays["ids"])
    if case.mask == "prefix":
        return (causal() | valid(arrays["prompt"])) & same_segment(arrays["ids"])
    return lengths(arrays["lengths"], arrays["lengths"])


def fused(case: Case) -> Attend:
    """The kernel; its plan is drawn in the call."""

    def attend(q: Any, k: Any, v: Any, arrays: Any) -> jax.Array:
        return flaxattn.attend(q, k, v, mask_of(case, arrays), implementation="fused")

    return attend


def planned(case: Case) -> Attend:
    """The kernel, its plan drawn before, as layers share one."""
    draw = IMPLEMENTATIONS["fused"].plan
    assert draw is not None
    plan = jax.jit(lambda arrays: draw(mask_of(case, arrays), case.length, case.length))(
        case.arrays
    )

    def attend(q: Any, k: Any, v: Any, arrays: Any) -> jax.Array:
        return flaxattn.attend(q, k, v, plan, implementation="fused")

    return attend


def blockwise(case: Case) -> Attend:
    """Loops of XLA."""

    def attend(q: Any, k: Any, v: Any, arrays: Any) -> jax.Array:
        return flaxattn.attend(q, k, v, mask_of(case, arrays), implementation="blockwise")

    return attend


def options_of(case: Case, arrays: dict[str, Any]) -> dict[str, Any]:
    """What `jax.nn.dot_product_attention`, and tokamax likewise, is told of a mask."""
    if case.mask == "causal":
        return {"is_causal": True}
    if case.mask == "window":
        return {"is_causal": True, "local_window_size": (case.window, 0)}
    if case.mask == "ragged":
        own = arrays["lengths"]
        return {"query_seq_lengths": own, "key_value_seq_lengths": own}
    return {"mask": mask_of(case, arrays).dense(case.length, case.length)[:, None]}


def jax_nn(case: Case) -> Attend:
    """cuDNN's attention on a GPU, XLA's elsewhere; rules that it does not know are in memory."""
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"

    def attend(q: Any, k: Any, v: Any, arrays: Any) -> jax.Array:
        told = options_of(case, arrays)
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation, **told)

    return attend


def tokamax(case: Case) -> Attend:
    """The best of it for the device."""
    from tokamax import dot_product_attention

    return lambda q, k, v, arrays: dot_product_attention(q, k, v, **options_of(case, arrays))


def splash(case: Case) -> Attend:
    """The kernel for TPUs that comes with jax, whose masks are known while tracing."""
    if jax.default_backend() != "tpu":
        raise ValueError("it is for TPUs")
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (case.length, case.length)
    make = {
        "causal": lambda: masks.CausalMask(shape),
        "window": lambda: masks.LocalMask(shape, (case.window, 0), 0),
        "documents": lambda: masks.CausalMask(shape),
        "ragged": lambda: masks.FullMask(shape),
    }
    if case.mask not in make:
        raise ValueError("it has no such mask of arrays")
    mask = masks.MultiHeadMask([make[case.mask]()] * case.heads)
    attend_one = kernel.make_splash_mha_single_device(mask)

    def attend(q: Any, k: Any, v: Any, arrays: Any) -> jax.Array:
        q, k, v = (x.swapaxes(1, 2) for x in (q * case.head_dim**-0.5, k, v))
        ids = arrays.get("ids")
        if case.mask == "ragged":
            ids = (jnp.arange(case.length) < arrays["lengths"][:, None]).astype(jnp.int32)
        segments = None if ids is None else kernel.SegmentIds(ids, ids)
        return jax.vmap(attend_one)(q, k, v, segments).swapaxes(1, 2)

    return attend


CONTENDERS: dict[str, Callable[[Case], Attend]] = {
    "flaxattn fused": fused,
    "flaxattn fused, plan given": planned,
    "jax.nn": jax_nn,
    "tokamax": tokamax,
    "splash": splash,
    "flaxattn blockwise": blockwise,
}


def inputs_of(case: Case) -> list[list[jax.Array]]:
    """Query, key, value and cotangent of each set, bfloat16."""
    shape = (SETS, 4, case.batch, case.length, case.heads, case.head_dim)
    numbers = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16))(jax.random.key(0))
    return [[numbers[i, j] for j in range(4)] for i in range(SETS)]


class Compiled(NamedTuple):
    """A program that is ready to be timed."""

    program: Any
    inputs: list[list[Any]]
    case: Case
    backward: bool
    seconds: float  # that it took to compile

    def measured(self) -> dict[str, Any]:
        """The row of it."""
        memory = self.program.memory_analysis()
        row: dict[str, Any] = {"compile_s": self.seconds}
        row["temp_bytes"] = int(memory.temp_size_in_bytes) if memory else None
        row |= timed(self.program, self.inputs, jax.block_until_ready)
        if kernels := kernel_times(lambda: self.program(*self.inputs[0])):
            row["kernels_us"] = kernels
        found = jax.tree.leaves(self.program(*self.inputs[0]))
        if not all(bool(jnp.isfinite(x).all()) for x in found):
            row["warning"] = "what it gave is not finite"
        return row | {"tflops": self.case.flops(self.backward) / row["ms"] / 1e9}


def compiled(attend: Attend, case: Case, backward: bool) -> Compiled:
    """The program of a contender."""
    arrays = {name: jnp.asarray(x) for name, x in case.arrays.items()}

    def forward(q: Any, k: Any, v: Any, cotangent: Any, arrays: Any) -> Any:
        return attend(q, k, v, arrays)

    def both(q: Any, k: Any, v: Any, cotangent: Any, arrays: Any) -> Any:
        output, pull = jax.vjp(functools.partial(attend, arrays=arrays), q, k, v)
        return output, pull(cotangent)

    inputs = [[*given, arrays] for given in inputs_of(case)]
    began = time.perf_counter()
    program = jax.jit(both if backward else forward).lower(*inputs[0]).compile()
    return Compiled(program, inputs, case, backward, time.perf_counter() - began)


def attention(case: Case, contender: str, backward: bool) -> dict[str, Any]:
    """A row of the table."""
    return compiled(CONTENDERS[contender](case), case, backward).measured()


def blocks(case: Case, block_q: int, block_kv: int, backward: bool) -> dict[str, Any]:
    """A row of the search for block sizes; what else a kernel can be told is to be told here."""
    jax.clear_caches()  # which know nothing of sizes
    kernels = kernels_of(chip())
    with mock.patch.object(kernels, "block_sizes", lambda *_: (block_q, block_kv)):
        return compiled(fused(case), case, backward).measured()


def product(size: int) -> dict[str, Any]:
    """The ceiling: a matrix product in bfloat16 of standard normal numbers."""
    shape = (SETS, 2, size, size)
    numbers = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16))(jax.random.key(0))
    inputs = [[numbers[i, 0], numbers[i, 1]] for i in range(SETS)]
    row = timed(jax.jit(jnp.matmul), inputs, jax.block_until_ready)
    return row | {"tflops": 2 * size**3 / row["ms"] / 1e9}
