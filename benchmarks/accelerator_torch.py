"""What `accelerator.py` runs in PyTorch: FlexAttention, compiled, and its own attention."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerator_cases import Case
from accelerator_timing import SETS, timed
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["CONTENDERS", "about", "attention", "healthy", "product"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def about() -> dict[str, Any]:
    """Its version; the device is jax's to name."""
    return {"versions": {"torch": torch.__version__}}


def healthy() -> bool:
    """Whether the device still computes, after something has failed."""
    try:
        return float(torch.ones(2, device=DEVICE).sum()) == 2.0
    except Exception:
        return False


def wait(_: Any) -> None:
    """Until everything is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rule_of(case: Case) -> Callable[..., Any]:
    """The mask of a case, as FlexAttention has it."""
    own = {name: torch.tensor(x, device=DEVICE) for name, x in case.arrays.items()}

    def window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= case.window)

    def documents(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (own["ids"][b, q] == own["ids"][b, k])

    def prefix(b: Any, h: Any, q: Any, k: Any) -> Any:
        return ((q >= k) | own["prompt"][b, k]) & (own["ids"][b, q] == own["ids"][b, k])

    def ragged(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q < own["lengths"][b]) & (k < own["lengths"][b])

    rules = {"window": window, "documents": documents, "prefix": prefix, "ragged": ragged}
    return rules.get(case.mask, lambda b, h, q, k: q >= k)


def flex(case: Case) -> tuple[Callable[..., Any], dict[str, Any]]:
    """FlexAttention, and what it takes to make its mask, both compiled."""
    rule, batch = rule_of(case), case.batch if case.arrays else None

    def build(*_: Any) -> Any:
        sizes = (batch, None, case.length, case.length)
        return create_block_mask(rule, *sizes, device=DEVICE, _compile=DEVICE == "cuda")

    found = timed(build, [()], wait)
    attend = torch.compile(flex_attention)
    return functools.partial(attend, block_mask=build()), {"mask_ms": found["ms"]}


def sdpa(case: Case) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The kernels that PyTorch chooses among for causal attention."""
    if case.mask != "causal":
        raise ValueError("it has no such mask but as an array of all logits")
    return functools.partial(scaled_dot_product_attention, is_causal=True), {}


CONTENDERS = {"torch FlexAttention": flex, "torch SDPA": sdpa}


def attention(case: Case, contender: str, backward: bool) -> dict[str, Any]:
    """A row of the table."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    attend, found = CONTENDERS[contender](case)
    shape = (case.batch, case.heads, case.length, case.head_dim)

    def normal(learned: bool) -> Any:
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=learned)

    inputs = [[*(normal(backward) for _ in range(3)), normal(False)] for _ in range(SETS)]

    def forward(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        with torch.no_grad():
            return attend(q, k, v)

    def both(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        return torch.autograd.grad(attend(q, k, v), (q, k, v), cotangent)

    row = found | timed(both if backward else forward, inputs, wait)
    return row | {"tflops": case.flops(backward) / row["ms"] / 1e9}


def product(size: int) -> dict[str, Any]:
    """The ceiling, as in jax."""
    torch.manual_seed(0)
    shape = (SETS, 2, size, size)
    inputs = list(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16))
    row = timed(torch.matmul, inputs, wait)
    return row | {"tflops": 2 * size**3 / row["ms"] / 1e9}
