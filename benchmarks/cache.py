"""What a step of decoding costs, by how much its cache holds: one run, one table and a JSON.

    uv run --group benchmark benchmarks/cache.py            # a minute on two cores
    uv run --group benchmark benchmarks/cache.py --quick    # tiny, to try it out

A stack of layers with rotary positions reads 32 tokens one by one, from several positions on. With
a window a ring of as many cells does for any length, and a token costs the same wherever it stands;
a full cache costs what of it is live. In every round each case runs once, in turn.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from report import write  # beside this file

from flaxattn import (
    CachePosition,
    Encoder,
    EncoderLayer,
    Mask,
    causal,
    keep_freed_memory,
    sliding_window,
)
from flaxattn.training.devices import describe_devices

ROUNDS, BATCH, FEATURES, HEADS, LAYERS, TOKENS = 9, 8, 256, 4, 4, 32
WINDOW = 64


class Case(NamedTuple):
    """A cache, and where in it the tokens stand."""

    cells: int
    ring: bool
    start: int  # of the tokens


def cases(quick: bool) -> dict[str, Case]:
    """By name."""
    if quick:
        return {"ring": Case(9, True, 20), "full": Case(64, False, 20)}
    ring, full = WINDOW + 1, 4096
    return {
        f"window of {WINDOW}, ring of {ring} cells, after 100": Case(ring, True, 100),
        f"window of {WINDOW}, ring of {ring} cells, up to 512": Case(ring, True, 512 - TOKENS),
        f"window of {WINDOW}, 512 cells, after 100": Case(512, False, 100),
        f"window of {WINDOW}, 512 cells, up to 512": Case(512, False, 512 - TOKENS),
        f"{full} cells, up to 64 live": Case(full, False, 64 - TOKENS),
        f"{full} cells, up to 1024 live": Case(full, False, 1024 - TOKENS),
        f"{full} cells, all live": Case(full, False, full - TOKENS),
    }


def make(case: Case, size: dict[str, int]) -> Callable[[], float]:
    """A run: the seconds for a token."""
    layer = functools.partial(
        EncoderLayer, HEADS, ff_features=4 * size["features"], rotary=True, norm="rms"
    )
    stack = Encoder(layer, size["layers"])
    windowed = case.cells <= 512
    mask: Mask = causal() & sliding_window(min(WINDOW, case.cells - 1)) if windowed else causal()
    x = jax.random.normal(jax.random.key(1), (TOKENS, size["batch"], 1, size["features"]))
    before = jax.random.normal(jax.random.key(2), (size["batch"], case.start, size["features"]))
    params = stack.init(jax.random.key(0), x[0], deterministic=True)

    def read(cache: Any, x: jax.Array, index: Any) -> tuple[jax.Array, Any]:
        position = CachePosition(index, case.cells, ring=case.ring)
        how: Any = {"mask": mask, "cache_position": position, "deterministic": True}
        output, state = stack.apply(params | cache, x, **how, mutable=["cache"])
        return output, {"cache": state["cache"]}

    @functools.partial(jax.jit, donate_argnums=0)
    def decode(cache: Any, start: jax.Array) -> tuple[Any, jax.Array]:
        def step(cache: Any, token: Any) -> tuple[Any, jax.Array]:
            output, cache = read(cache, *token)
            return cache, output

        return jax.lax.scan(step, cache, (x, start + jnp.arange(TOKENS)))

    cache = jax.jit(read)({}, before, 0)[1]

    def run() -> float:
        own = jax.block_until_ready(jax.tree.map(jnp.copy, cache))
        began = time.perf_counter()
        output = jax.block_until_ready(decode(own, jnp.int32(case.start)))[1]
        seconds = (time.perf_counter() - began) / TOKENS
        assert jnp.isfinite(output).all()
        return seconds

    run()  # compiles
    return run


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few rounds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/cache"))
    options = parser.parse_args()
    keep_freed_memory()
    size = {"batch": BATCH, "features": FEATURES, "layers": LAYERS}
    if options.quick:
        size = {"batch": 2, "features": 16, "layers": 1}
    runs = {name: make(case, size) for name, case in cases(options.quick).items()}
    rounds = range(2 if options.quick else ROUNDS)
    seconds = [{name: run() for name, run in runs.items()} for _ in rounds]
    rows = [{"case": name, "seconds": sorted(r[name] for r in seconds)} for name in runs]
    about = (
        f"milliseconds for a token of {size['batch']} sequences; {size['layers']} layers, "
        f"D={size['features']}, {HEADS} heads; {describe_devices()}"
    )
    lines = [about, "", "| cache | ms a token |", "|---|--:|"]
    lines += [f"| {r['case']} | {1000 * np.median(r['seconds']):.2f} |" for r in rows]
    print("\n".join(lines))
    write(options.out, {"about": about, "rows": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
