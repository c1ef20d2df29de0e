"""A plan in words and as a map of characters."""

import textwrap

import numpy as np

from flaxattn.attention import table
from flaxattn.attention.arguments import check_drawable, check_is_score
from flaxattn.attention.costs import draw_plan
from flaxattn.drawing.shards import in_words
from flaxattn.masks import BlockPlan, Blocks, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = ["SYMBOLS", "explain", "flat", "share_skipped"]

SYMBOLS = np.array(["·", "▒", "█"])  # empty, partial, full
MAP_ROWS, MAP_COLUMNS = 32, 64


def explain(
    mask: Mask, q_len: int, kv_len: int, score: Score | None = None, *, shards: int | None = None
) -> str:
    """A map of the blocks, the share of work skipped, and what "auto" chooses and why.

    A score is named; it hides nothing, and so changes no block. With `shards` also what
    `attend_over` costs over so many devices: how evenly layouts divide the work, and what is sent.

    Raises TypeError for what is no `Mask`, `Score` or integer; ValueError for lengths below 0, or
    that the devices do not divide.

    >>> print(explain(causal(), 1024, 1024))
    causal(): 1024 queries, 1024 keys, blocks of 256 x 256
    ▒···
    █▒··
    ██▒·
    ███▒
    · empty 37.5%   ▒ partial 25.0%   █ full 37.5%
    skipped: 37.5% of the blocks, 37.5% of the FLOPs of dense attention
    implementation="auto" chooses "blockwise": 1024 x 1024 logits per head; blocks are
    faster above about 360 x 360
    >>> for line in explain(causal(), 1024, 1024, shards=4).splitlines()[-6:]:
    ...     print(line)
    over 4 devices      slowest   in step     ring sends
    contiguous             1.71      1.71        384 KiB
    zigzag                 1.00      1.00        384 KiB
    balanced               1.00      1.00        384 KiB
    gather sends 384 KiB, heads 192 KiB: a device, forward, for each head of 64 in float32
    slowest: its work over the mean; in step: if devices wait for each other at each hop
    """
    check_drawable(mask, q_len, kv_len)
    check_is_score(score)
    choice = table.best(q_len, kv_len)
    plan = (table.IMPLEMENTATIONS[choice.name].plan or draw_plan)(mask, q_len, kv_len)
    state = flat(plan.state)
    lines = [
        f"{mask}: {q_len} queries, {kv_len} keys, blocks of {plan.block_q} x {plan.block_kv}",
        *([] if score is None else [f"score: {score}"]),
        *("".join(row) for row in SYMBOLS[_shrink(state[0])]),
        f"{SYMBOLS[0]} empty {_share(state == 0)}   {SYMBOLS[1]} partial {_share(state == 1)}   "
        f"{SYMBOLS[2]} full {_share(state == 2)}   "
        + (f"(map: the first of {len(state)} plans; shares: of all)" if len(state) > 1 else ""),
        f"skipped: {_share(state == 0)} of the blocks, "
        f"{share_skipped(plan):.1%} of the FLOPs of dense attention",
        *textwrap.wrap(f'implementation="auto" chooses "{choice.name}": {choice.why}', 88),
        *([] if shards is None else in_words(mask, q_len, kv_len, shards)),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _share(where: np.ndarray) -> str:
    return f"{np.mean(where):.1%}" if np.size(where) else "0.0%"


def flat(array: Array) -> np.ndarray:
    """[*lead, rows, columns] -> NumPy [the product of lead, rows, columns]."""
    return np.asarray(array).reshape(int(np.prod(array.shape[:-2])), *array.shape[-2:])


def share_skipped(plan: BlockPlan) -> float:
    """The share of the logits that lie in empty blocks, and so of the work that is not done."""
    q, kv = Blocks.of(plan.q_len, plan.block_q), Blocks.of(plan.kv_len, plan.block_kv)
    live = np.asarray(plan.bounds.some) * (q.lengths[:, None] * kv.lengths[None, :])
    cells = plan.q_len * plan.kv_len * np.prod(live.shape[:-2])
    return float(1 - live.sum() / max(cells, 1))


def _shrink(state: np.ndarray) -> np.ndarray:
    """At most MAP_ROWS x MAP_COLUMNS cells; one that covers different kinds is partial."""
    for axis, most in enumerate((MAP_ROWS, MAP_COLUMNS)):
        step = -(-state.shape[axis] // most)
        starts = np.arange(0, state.shape[axis], max(step, 1))
        if step > 1:
            low, high = (f.reduceat(state, starts, axis=axis) for f in (np.minimum, np.maximum))
            state = np.where(low == high, low, 1)
    return state
