"""What a mask costs whose sequence is spread over devices, in words: from its bounds alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flaxattn import checks
from flaxattn.attention.balance import live_hops, slowest, slowest_in_step
from flaxattn.attention.layout import Layout
from flaxattn.masks import Mask

__all__ = ["Cost", "costs_of", "in_words", "sent"]

HEAD, BYTES = 64, 4  # what is told is for one head of queries and keys, in float32


class Cost(NamedTuple):
    """Of a layout."""

    name: str
    layout: Layout
    slowest: float
    """The work of the device that has most, over the mean."""
    in_step: float
    """The same of a ring whose devices wait for each other at each hop."""
    hops: int
    """How often keys and values are sent on in a ring."""


def costs_of(mask: Mask, q_len: int, kv_len: int, shards: int) -> list[Cost]:
    """Those of the layouts that fit; ValueError for lengths that the devices do not divide."""
    of_keys = None if q_len == kv_len else Layout.contiguous(kv_len, shards)
    return [
        Cost(
            name,
            layout,
            slowest(cells := layout.cells(mask, of_keys)),
            slowest_in_step(cells),
            len(live_hops(np.asarray(layout.live(mask, of_keys)))) - 1,
        )
        for name, layout in _layouts(mask, q_len, kv_len, shards)
    ]


def _layouts(mask: Mask, q_len: int, kv_len: int, shards: int) -> Iterator[tuple[str, Layout]]:
    yield "contiguous", Layout.contiguous(q_len, shards)
    if q_len == kv_len and q_len % (2 * shards) == 0:
        yield "zigzag", Layout.zigzag(q_len, shards)
    if q_len == kv_len:
        yield "balanced", Layout.balanced(mask, q_len, shards)


def sent(method: str, q_len: int, kv_len: int, shards: int, hops: int) -> float:
    """Bytes that a device sends forward, of one head: keys and values, of "heads" all four."""
    of_position = 2 * HEAD * BYTES
    if method == "heads":
        return (q_len + kv_len) / shards * (shards - 1) / shards * of_position
    return (hops if method == "ring" else shards - 1) * kv_len / shards * of_position


def in_words(mask: Mask, q_len: int, kv_len: int, shards: int) -> list[str]:
    """A table of layouts, and what is sent."""
    shards = checks.check_size("shards", shards, minimum=1)
    found = costs_of(mask, q_len, kv_len, shards)
    sizes = {m: _kib(sent(m, q_len, kv_len, shards, 0)) for m in ("gather", "heads")}
    return [
        f"over {f'{shards} devices':12} {'slowest':>9} {'in step':>9} {'ring sends':>14}",
        *(
            f"{x.name:17} {x.slowest:9.2f} {x.in_step:9.2f} "
            f"{_kib(sent('ring', q_len, kv_len, shards, x.hops)):>14}"
            for x in found
        ),
        f"gather sends {sizes['gather']}, heads {sizes['heads']}: a device, forward, "
        f"for each head of {HEAD} in float32",
        "slowest: its work over the mean; in step: if devices wait for each other at each hop",
    ]


def _kib(size: float) -> str:
    return f"{size / 1024:,.0f} KiB"
