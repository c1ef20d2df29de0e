"""PyTorch's attentions as contenders of `attention.py`; none where torch is not installed."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["contenders", "same_segment", "versions"]


def installed() -> bool:
    """Whether torch is there."""
    return importlib.util.find_spec("torch") is not None


def versions() -> dict[str, str]:
    """That of torch."""
    if not installed():
        return {}
    import torch

    return {"torch": torch.__version__}


def same_segment(ids: np.ndarray) -> Callable[..., Any] | None:
    """FlexAttention's rule for segment ids [T]."""
    if not installed():
        return None
    import torch

    tensor = torch.tensor(ids)
    return lambda b, h, q, k: tensor[q] == tensor[k]


def contenders(
    arrays: list[np.ndarray], mask: Any, causal: bool | None, backward: bool
) -> Iterator[tuple[str, Callable[[], Any], dict[str, Any]]]:
    """SDPA for full and causal attention, and FlexAttention, which on a CPU goes forward only.

    Args:
      arrays: query, key, value and cotangent, `[B, T, N, H]`.
      mask: a rule of (b, h, q, k) for FlexAttention, or None.
      causal: what SDPA is told; None: it is not asked.
      backward: whether gradients are wanted.
    """
    if not installed():
        return
    import torch
    import torch.nn.functional as functional
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v, cotangent = (torch.tensor(x).transpose(1, 2).contiguous() for x in arrays)
    if causal is not None:

        def forward() -> Any:
            with torch.no_grad():
                return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        def both() -> Any:
            inputs = [x.detach().requires_grad_() for x in (q, k, v)]
            output = functional.scaled_dot_product_attention(*inputs, is_causal=causal)
            return torch.autograd.grad(output, inputs, cotangent)

        yield "torch SDPA", both if backward else forward, {}
    if mask is not None and not backward:
        length = q.shape[2]

        def build() -> Any:
            return create_block_mask(mask, None, None, length, length, device="cpu")

        build()
        start = time.perf_counter()
        blocks = build()
        seconds = time.perf_counter() - start
        flex = torch.compile(flex_attention)

        def flexible() -> Any:
            with torch.no_grad():
                return flex(q, k, v, block_mask=blocks)

        yield "torch FlexAttention", flexible, {"mask_ms": seconds * 1e3}
