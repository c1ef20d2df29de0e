"""What a sequence over many devices costs: from plans, without devices, and as ratios of steps.

    uv run --group benchmark benchmarks/scale.py            # a few minutes on two cores
    uv run --group benchmark benchmarks/scale.py --quick    # tiny, to try it out

The first table is counted: of every mask, layout and number of devices the work of the slowest
device over the mean, and what a device sends forward. The second is measured on eight devices that
XLA makes of one CPU, which they share: what counts is what all of them do together, and not who
waits for whom. In every round each contender runs once, in turn, forward and backward.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

DEVICES = 8
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from documents import documents  # noqa: E402  # beside this file
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from report import write  # noqa: E402  # beside this file

from flaxattn import (  # noqa: E402
    Layout,
    Mask,
    attend,
    attend_over,
    causal,
    full,
    same_segment,
    sliding_window,
)
from flaxattn.drawing.shards import costs_of, sent  # noqa: E402
from flaxattn.training.devices import describe_devices  # noqa: E402

ROUNDS, HEADS, FEATURES = 3, 8, 64
Step = Callable[..., Any]


def masks(length: int) -> dict[str, Mask]:
    """By name."""
    return {
        "full": full(),
        "causal": causal(),
        "causal window": causal() & sliding_window(length // 32, 0),
        "window": sliding_window(length // 32),
        "16 documents": same_segment(documents(length, 16, 0.0)),
        "16 documents, uneven": same_segment(documents(length, 16, 0.9)),
        "the same, causal": causal() & same_segment(documents(length, 16, 0.9)),
    }


def counted(length: int, shards: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for each mask, layout and number of devices."""
    rows = []
    for name, mask in masks(length).items():
        for n in shards:
            for cost in costs_of(mask, length, length, n):
                ways = {m: sent(m, length, length, n, cost.hops) for m in WAYS}
                of_layout = {"layout": cost.name, "chunks": cost.layout.chunks, "hops": cost.hops}
                waits = {"slowest": cost.slowest, "in_step": cost.in_step}
                rows.append({"mask": name, "devices": n} | of_layout | waits | {"sent": ways})
    return rows


WAYS = ("ring", "gather", "heads")


def table_of_counts(rows: list[dict[str, Any]], shards: tuple[int, ...]) -> list[str]:
    """Slowest over the mean, by layout and devices, and MiB that a device sends."""
    few, many = shards[(len(shards) - 1) // 2], shards[-1]
    shown = dict.fromkeys((shards[0], few, many))  # the others are in the JSON
    lines = [
        f"| mask | layout | {' | '.join(f'of {n}' for n in shown)} | "
        f"ring, of {few} | of {many} | gather | heads |",
        f"|---|---|{'--:|' * (len(shown) + 4)}",
    ]
    for mask in dict.fromkeys(row["mask"] for row in rows):
        for layout in ("contiguous", "zigzag", "balanced"):
            own = {r["devices"]: r for r in rows if (r["mask"], r["layout"]) == (mask, layout)}
            waits = " | ".join(f"{own[n]['slowest']:.2f}" for n in shown)
            wires = [own[few]["sent"]["ring"], own[many]["sent"]["ring"]]
            wires += [own[few]["sent"][way] for way in ("gather", "heads")]
            sizes = " | ".join(f"{size / 2**20:.2f}" for size in wires)
            lines.append(f"| {mask} | {layout} | {waits} | {sizes} |")
    return lines


@contextlib.contextmanager
def unskipped() -> Iterator[None]:
    """Within it a ring takes all hops as live; blocks that are empty stay so."""
    every = np.ones((DEVICES, DEVICES), bool)
    with mock.patch.object(Layout, "live", lambda *_: every):
        yield


def step_of(mask: Mask, length: int, **over: Any) -> tuple[Step, list[jax.Array]]:
    """Forward and backward over the devices, or on one, compiled; and what it takes."""
    count = DEVICES if over else 1
    kinds, devices = (AxisType.Auto,), jax.devices()[:count]
    mesh = jax.make_mesh((count,), ("context",), axis_types=kinds, devices=devices)
    spec = P(None, "context")
    call = functools.partial(attend, mask=mask)
    if over:
        local = functools.partial(attend_over, mask=mask, axis="context", **over)
        call = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)
    gradient = jax.jit(jax.grad(lambda *x: jnp.square(call(*x)).sum(), (0, 1, 2)))
    place, rng = NamedSharding(mesh, spec), np.random.default_rng(0)
    shape = (1, length, HEADS, FEATURES)
    arrays = [jax.device_put(np.float32(rng.standard_normal(shape)), place) for _ in range(3)]
    return gradient.lower(*arrays).compile(), arrays


def contenders(mask: Mask, length: int) -> dict[str, tuple[Step, list[jax.Array]]]:
    """By name; the first is what the others are compared with."""
    balanced = Layout.balanced(mask, length, DEVICES)
    found = {
        "one device": step_of(mask, length),
        "ring": step_of(mask, length, method="ring"),
        "ring, balanced": step_of(mask, length, method="ring", layout=balanced),
    }
    with unskipped():
        found["ring, no hop left out"] = step_of(mask, length, method="ring")
    found["gather"] = step_of(mask, length, method="gather")
    found["heads"] = step_of(mask, length, method="heads")
    return found


def measured(length: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each contender, by mask: the medians of rounds in which each runs once."""
    names = ("causal", "causal window", "16 documents, uneven")
    found = {}
    for name in names:
        steps = contenders(masks(length)[name], length)
        seconds: dict[str, list[float]] = {who: [] for who in steps}
        for _ in range(rounds + 1):
            for who, (step, arrays) in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(*arrays))
                seconds[who].append(time.perf_counter() - start)
        found[name] = {who: float(np.median(times[1:])) for who, times in seconds.items()}
    return found


def table_of_times(found: dict[str, dict[str, float]]) -> list[str]:
    """As ratios to the first contender."""
    whos = list(next(iter(found.values())))
    lines = [f"| mask | {' | '.join(whos)} |", f"|---|{'--:|' * len(whos)}"]
    for mask, seconds in found.items():
        ratios = " | ".join(f"{seconds[who] / seconds[whos[0]]:.2f}" for who in whos)
        lines.append(f"| {mask} | {ratios} |")
    return lines


def main() -> None:
    """Counts, measures and writes both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/scale"))
    parser.add_argument("--quick", action="store_true", help="tiny, to try it out")
    options = parser.parse_args()
    length, steps, rounds = (1024, 256, 1) if options.quick else (65536, 8192, ROUNDS)
    shards = (2, 4) if options.quick else (2, 4, 8, 16, 32, 64)
    rows, times = counted(length, shards), measured(steps, rounds)
    on = describe_devices()
    table = [
        f"counted from plans: {length} positions, the work of the slowest device over the mean, by "
        "the number of devices, and MiB that one sends forward for each head of 64 in float32",
        "",
        *table_of_counts(rows, shards),
        "",
        f"measured, as ratios: {steps} positions, {HEADS} heads of {FEATURES}, forward and "
        f"backward, on {DEVICES} devices that share one CPU ({on})",
        "",
        *table_of_times(times),
    ]
    record = {"length": length, "counted": rows, "steps": steps, "seconds": times, "on": on}
    write(options.out, record, "\n".join(table))
    print("\n".join(table))


if __name__ == "__main__":
    main()
