"""How `accelerator.py` takes times, the same for every library."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["SETS", "timed"]

SETS = 4  # of distinct inputs that calls take in turn
ROUNDS, ROUND_SECONDS, MOST_CALLS = 7, 0.05, 100


def timed(
    call: Callable[..., Any], inputs: Sequence[Sequence[Any]], wait: Callable[[Any], Any]
) -> dict[str, Any]:
    """The median of seven rounds and its quartiles, in milliseconds a call.

    A round is as many calls, one handed over after the other, as take about a twentieth of a
    second, and it ends when the last is done. So what a host needs to start a call is hidden.
    """
    for given in inputs:  # compiled, warm, and each input seen once
        wait(call(*given))
    began = time.perf_counter()
    wait(call(*inputs[0]))
    once = time.perf_counter() - began
    calls = int(np.clip(ROUND_SECONDS / once, 1, MOST_CALLS))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i in range(calls):
            last = call(*inputs[i % len(inputs)])
        wait(last)
        found.append((time.perf_counter() - began) / calls * 1e3)
    low, middle, high = np.percentile(found, [25, 50, 75])
    return {"ms": middle, "ms_quartiles": [low, high], "calls": calls}
