"""The implementations of attention, by name, and the place that chooses among them.

All have one signature: `(query, key, value, mask or plan, options) -> (output, log-sum-exp)`, with
the shapes of `attend_with_stats`. A new one is a file with that function, and a line here.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.export import is_symbolic_dim

from flaxattn.attention.arguments import check_drawable
from flaxattn.attention.blockwise import attend_blockwise, share_blockwise
from flaxattn.attention.costs import blocks_pay, draw_plan, kernels_pay
from flaxattn.attention.dense import attend_dense
from flaxattn.attention.fused.attend import (
    attend_fused,
    draw_fused_plan,
    is_proven,
    share_fused,
    why_not_fused,
)
from flaxattn.attention.merge import Part
from flaxattn.attention.options import Attend, Call
from flaxattn.masks import BlockPlan, Mask

__all__ = ["IMPLEMENTATIONS", "Choice", "Implementation", "best", "choose", "prepare"]


def _serves(*call: *Call) -> str | None:
    """No reason why not."""


def _blocks_need_sizes(*call: *Call) -> str | None:
    """Lengths and heads are cut into blocks and chunks of sizes that are known while tracing."""
    query, key, *_ = call
    sizes = {"query has T": query.shape[1], "query has N": query.shape[2]}
    sizes |= {"key has S": key.shape[1], "key has K": key.shape[2]}
    for whose, size in sizes.items():
        if is_symbolic_dim(size):
            return (
                f"{whose} = {size}, a symbolic size, and blocks need known ones; "
                'implementation="dense" takes any'
            )
    return None


class Implementation(NamedTuple):
    """One way to attend."""

    attend: Attend
    plan: Callable[[Mask, int, int], BlockPlan] | None = None
    """Of a mask, T and S: the plan that it would draw itself; None: it needs no plan."""
    why_not: Callable[[*Call], str | None] = _serves
    """Why it cannot serve a call; None: it can."""
    share: Callable[[Part, *Call], Part] | None = None
    """`merge.share` of a part and a total, in a faster way; None: it has none."""


IMPLEMENTATIONS = {
    "dense": Implementation(attend_dense),
    "blockwise": Implementation(attend_blockwise, draw_plan, _blocks_need_sizes, share_blockwise),
    "fused": Implementation(attend_fused, draw_fused_plan, why_not_fused, share_fused),
}


class Choice(NamedTuple):
    """The name of an implementation, and why it is the one."""

    name: str
    why: str


def best(q_len: int, kv_len: int) -> Choice:
    """What `implementation="auto"` takes at these lengths, if it serves the call.

    Else, and where a plan is given, it takes the next that does, see `choose`.
    """
    if is_symbolic_dim(q_len) or is_symbolic_dim(kv_len):
        return Choice("dense", f"{q_len} x {kv_len} logits per head; blocks need known lengths")
    pays, why = kernels_pay(q_len, kv_len)
    if pays:
        return Choice("fused", why)
    pays, why = blocks_pay(q_len, kv_len)
    return Choice("blockwise" if pays else "dense", why)


def choose(name: str, *call: *Call) -> str:
    """The name of the implementation that serves a call: the one asked for, or the best.

    Raises:
      ValueError if there is none of that name, or it cannot serve the call: it says why.
    """
    if name == "auto":
        return next(x for x in _best_first(*call) if IMPLEMENTATIONS[x].why_not(*call) is None)
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        choices = ("auto", *IMPLEMENTATIONS)
        raise ValueError(f"implementation is {name!r}; expected one of {choices}.")
    if why := IMPLEMENTATIONS[name].why_not(*call):
        raise ValueError(f'implementation="{name}" cannot serve this call: {why}.')
    return name


def _best_first(*call: *Call) -> Iterator[str]:
    """What "auto" would take, and in its place if that does not serve; dense serves all."""
    query, key, _, mask, _ = call
    lengths, planned = (query.shape[1], key.shape[1]), isinstance(mask, BlockPlan)
    name = best(*lengths).name
    if name == "fused":
        if is_proven(*call):
            yield name
        if blocks_pay(*lengths)[0]:
            yield "blockwise"
    else:
        yield "blockwise" if planned else name
    yield "dense"


def prepare(mask: Mask, q_len: int, kv_len: int) -> Mask | BlockPlan:
    """The plan of `mask` if `implementation="auto"` would draw one, else the mask as it is.

    `attend` takes either. Layers that share a mask can share its plan, and it is drawn once.
    For symbolic lengths, as `jax.export` has them, it would draw none.

    Raises TypeError for what is no `Mask`, or no integer; ValueError for lengths below 0.

    >>> type(prepare(causal(), 64, 64)).__name__, type(prepare(causal(), 8192, 8192)).__name__
    ('causal', 'BlockPlan')
    """
    check_drawable(mask, q_len, kv_len)
    plan = IMPLEMENTATIONS[best(q_len, kv_len).name].plan
    return mask if plan is None else plan(mask, q_len, kv_len)
