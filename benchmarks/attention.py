"""Attention against what one would use instead: one run, one table, a JSON and a picture.

    uv run --group benchmark benchmarks/attention.py                 # all, 15 minutes on two cores
    uv run --group benchmark benchmarks/attention.py --only causal   # cases whose name starts so
    uv run --group benchmark benchmarks/attention.py --only score --out results/scores
    uv run --group benchmark benchmarks/attention.py --keep-freed-memory --out results/kept

Contenders: flaxattn (the default, "auto", and both implementations by name), jax.nn, flax.linen,
and PyTorch's scaled_dot_product_attention and compiled FlexAttention where torch is installed. In
every round each contender runs once, in turn, beside a large matrix product: the ceiling. What is
compared is medians of one run; times of different runs are not comparable.
"""

import argparse
import dataclasses
import functools
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch_attention  # beside this file; says itself whether torch is there
from documents import documents  # beside this file
from report import write  # beside this file

import flaxattn
from flaxattn import causal, full, lengths, prefix, same_segment, sliding_window
from flaxattn.attention.costs import draw_plan

ROUNDS, SECONDS = 7, 12.0  # per case: at most so many rounds, no new one after so long
DENSE_BYTES = 2**30  # logits above this are not asked of those who keep them
CEILING_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table: a mask at a size; its arrays are handed over as traced data."""

    name: str
    mask: Callable[..., Any]  # of `data`
    shape: tuple[int, int, int, int]  # B, T, N, H
    data: tuple[np.ndarray, ...] = ()
    backward: bool = False
    torch_mask: Callable[..., Any] | None = None  # of (b, h, q, k), for FlexAttention
    torch_causal: bool | None = None  # what SDPA is told; None: it is not asked
    score: Callable[..., Any] | None = None  # of `data`, which then are the score's
    adds: bool = False  # whether a bias in memory does the same, which the others are given


def cases() -> list[Case]:
    """Everything that is measured, forward, then forward and backward."""
    small = [
        Case(
            f"translation T={t}",
            lambda kv: causal() & lengths(kv_lengths=kv),
            (32, t, 4, 48),
            (np.random.default_rng(0).integers(t // 2, t + 1, 32),),
        )
        for t in (32, 64, 128)
    ]
    even, uneven = documents(8192, 16, 0.0), documents(8192, 16, 0.5)
    ragged = np.random.default_rng(2).uniform(0.25, 1.75, 8)
    ragged = np.round(ragged / ragged.sum() * 8 * 512).astype(int)

    def window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= 256)

    def back(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q >= k

    def packed(*ids: np.ndarray, name: str) -> Case:
        of = torch_attention.same_segment(ids[0][0])
        return Case(name, same_segment, (1, 8192, 4, 64), ids, torch_mask=of)

    def local() -> Any:
        return causal() & sliding_window(256)

    long = [
        *(
            Case(f"causal T={t}", causal, (1, t, 8, 64), torch_mask=back, torch_causal=True)
            for t in (256, 1024, 4096, 8192)
        ),
        Case("full T=4096", full, (1, 4096, 8, 64), torch_causal=False),
        Case("prefix T=4096", lambda: causal() | prefix(1024), (1, 4096, 8, 64)),
        Case("full T=16384 N=2", full, (1, 16384, 2, 64), torch_causal=False),
        Case("window 256 T=16384 N=2", local, (1, 16384, 2, 64), torch_mask=window),
        Case("window 256 T=32768 N=2", local, (1, 32768, 2, 64), torch_mask=window),
        Case("full T=8192 N=4", full, (1, 8192, 4, 64), torch_causal=False),
        packed(even, name="packed 16 of 512, T=8192 N=4"),
        packed(uneven, name="packed 16 of 256 to 768, T=8192 N=4"),
        Case(
            "composed T=8192 N=4",
            lambda ids: causal() & sliding_window(1024) & same_segment(ids),
            (1, 8192, 4, 64),
            (uneven,),
        ),
        Case("full B=8 T=2048 N=4", full, (8, 2048, 4, 64)),
        Case(
            "ragged B=8 T=2048 N=4, mean 512",
            lambda n: lengths(n, n),
            (8, 2048, 4, 64),
            (ragged,),
        ),
    ]
    decoder = functools.partial(flaxattn.relative_bias, bidirectional=False)
    table = np.random.default_rng(3).standard_normal((8, 32)).astype(np.float32)
    scored = [
        Case(
            f"score: {name}, causal T=4096", causal, (1, 4096, 8, 64), data, score=score, adds=adds
        )
        for name, score, data, adds in (
            ("soft cap", lambda: flaxattn.softcap(50.0), (), False),
            ("learned soft cap", flaxattn.softcap, (np.float32(50.0),), False),
            ("ALiBi", flaxattn.alibi, (), True),
            ("learned ALiBi", flaxattn.alibi, (flaxattn.alibi_slopes(8),), False),
            ("T5's table", decoder, (table,), True),
        )
    ]
    both = [*small, *long, *scored]
    return [*both, *(dataclasses.replace(case, backward=True) for case in both)]


def contenders(case: Case) -> dict[str, tuple[Callable[[], Any], dict[str, Any]]]:
    """For each contender a call that waits for its result, and what is known of it beforehand."""
    b, t, n, _ = case.shape
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal(case.shape), jnp.float32) for _ in range(4)]
    data = tuple(jnp.asarray(x) for x in case.data)

    def ours(implementation: Any, scored: bool = True) -> Callable[..., jax.Array]:
        def attend(q: Any, k: Any, v: Any, *data: Any) -> jax.Array:
            mask, score = parts(case, data)
            score = score if scored else None
            return flaxattn.attend(q, k, v, mask, score=score, implementation=implementation)

        return attend

    def theirs(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def attend(q: Any, k: Any, v: Any, *data: Any) -> jax.Array:
            mask, score = parts(case, data)
            dense = mask.dense(t, t)
            bias = None if score is None else score.for_heads(n).dense(t, t)
            mask = jnp.expand_dims(dense, {2: (0, 1), 3: 1}[dense.ndim])
            return fn(q, k, v, mask=mask, bias=bias)

        return attend

    functions = {"flaxattn": ours("auto"), "flaxattn blockwise": ours("blockwise")}
    if case.score is not None:
        functions["flaxattn, no score"] = ours("auto", scored=False)
    if (case.score is None or case.adds) and b * n * t * t * 4 <= DENSE_BYTES:
        functions |= {
            "flaxattn dense": ours("dense"),
            "jax.nn": theirs(jax.nn.dot_product_attention),
            "flax.linen": theirs(nn.dot_product_attention),
        }
    made = {}
    for name, fn in functions.items():
        made[name] = compiled(fn, arrays, data, case.backward)
    for name, call, about in torch_attention.contenders(
        [np.asarray(x) for x in arrays], case.torch_mask, case.torch_causal, case.backward
    ):
        made[name] = (call, about)
    factor = jnp.asarray(rng.standard_normal((CEILING_SIZE, CEILING_SIZE)), jnp.float32)
    product = jax.jit(jnp.matmul)
    made["ceiling"] = (lambda: product(factor, factor).block_until_ready(), {})
    return made


def parts(case: Case, data: tuple[Any, ...]) -> tuple[Any, Any]:
    """The mask and the score of a case; the data are the score's if it has one."""
    return (case.mask(*data), None) if case.score is None else (case.mask(), case.score(*data))


def compiled(
    fn: Callable[..., jax.Array], arrays: list[Any], data: tuple[Any, ...], backward: bool
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call of the compiled function, with its seconds to compile and its temporary bytes."""
    q, k, v, cotangent = arrays

    def both(q: Any, k: Any, v: Any, cotangent: Any, *data: Any) -> Any:
        output, pull = jax.vjp(fn, q, k, v, *data)  # data that float are learned, too
        return output, pull(cotangent)

    arguments = (q, k, v, cotangent, *data) if backward else (q, k, v, *data)
    start = time.perf_counter()
    program = jax.jit(both if backward else fn).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    about = {"compile_s": seconds, "temp_bytes": int(memory.temp_size_in_bytes) if memory else None}
    return lambda: jax.block_until_ready(program(*arguments)), about


def measure(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
        if time.perf_counter() - start > SECONDS:
            break
    return times


def live_flops(case: Case) -> float:
    """The floating-point operations of the matrix products on live blocks, seven with backward."""
    b, t, n, h = case.shape
    plan = draw_plan(parts(case, case.data)[0], t, t)
    plans = plan.bounds.some.size // (plan.bounds.some.shape[-2] * plan.bounds.some.shape[-1])
    live = np.sum(plan.bounds.some) * plan.block_q * plan.block_kv
    cells = live * b * n / plans  # one plan, or one per example: shared by the rest
    return float(cells) * 2 * h * (7 if case.backward else 2)


def run(case: Case) -> list[dict[str, Any]]:
    """The rows of one case."""
    made = contenders(case)
    times = measure({name: call for name, (call, _) in made.items()})
    ceiling = 2 * CEILING_SIZE**3 / np.median(times["ceiling"])
    rows = []
    for name, (_, about) in made.items():
        if name == "ceiling":
            continue
        low, middle, high = np.percentile(times[name], [25, 50, 75])
        row = {
            "case": case.name,
            "pass": "forward + backward" if case.backward else "forward",
            "contender": name,
            "ms": middle * 1e3,
            "ms_quartiles": [low * 1e3, high * 1e3],
            "rounds": len(times[name]),
            "ceiling_gflops": ceiling / 1e9,
            **about,
        }
        if name in ("flaxattn", "flaxattn blockwise"):
            row["share_of_ceiling"] = live_flops(case) / middle / ceiling
        rows.append(row)
        print(
            f"{row['case']:38} {row['pass']:18} {name:20} {row['ms']:9.2f} ms"
            f"  [{low * 1e3:.2f}, {high * 1e3:.2f}]"
            + (f"  {row['share_of_ceiling']:.0%} of ceiling" if "share_of_ceiling" in row else "")
            + (f"  {row['temp_bytes'] / 2**20:.0f} MiB" if row.get("temp_bytes") else "")
            + (f"  mask {row['mask_ms']:.1f} ms" if "mask_ms" in row else ""),
            flush=True,
        )
    return rows


def plan_costs() -> list[dict[str, Any]]:
    """What drawing a plan costs beside the attention it serves: composed mask, traced leaves."""
    rows = []
    for t, n in ((4096, 8), (131072, 8)):
        ids = jnp.asarray(documents(t, t // 512, 0.5))

        def mask(ids: Any) -> Any:
            return causal() & sliding_window(1024) & same_segment(ids)

        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, t, n, 64)), jnp.float32)
        draw = jax.jit(lambda ids, t=t: draw_plan(mask(ids), t, t).live)
        attend = jax.jit(lambda x, ids: flaxattn.attend(x, x, x, mask(ids)))
        times = measure(
            {
                "plan": lambda draw=draw, ids=ids: jax.block_until_ready(draw(ids)),
                "attention": lambda attend=attend, x=x, ids=ids: jax.block_until_ready(
                    attend(x, ids)
                ),
            }
        )
        plan, attention = (float(np.median(times[name])) for name in ("plan", "attention"))
        rows.append({"T": t, "plan_ms": plan * 1e3, "attention_ms": attention * 1e3})
        print(f"plan T={t}: {plan * 1e3:.2f} ms, {plan / attention:.2%} of its attention")
    return rows


def score_memory() -> list[dict[str, Any]]:
    """Temporary bytes with a score and without, compiled and not run: causal, T=32768."""
    arrays, rows = [jax.ShapeDtypeStruct((1, 32768, 8, 64), jnp.float32)] * 4, []
    for case in (c for c in cases() if c.score is not None):
        found = []
        for of in (case, dataclasses.replace(case, score=None, data=())):

            def attend(q: Any, k: Any, v: Any, *data: Any, of: Case = of) -> jax.Array:
                mask, score = parts(of, data)
                return flaxattn.attend(q, k, v, mask, score=score)

            data = tuple(jnp.asarray(x) for x in of.data)
            found.append(compiled(attend, arrays, data, of.backward)[1]["temp_bytes"])
        rows.append({"case": case.name, "backward": case.backward, "temp_bytes": found})
        print(f"{case.name}, but T=32768: {found[0] / found[1]:.3f} of the memory without")
    return rows


def memory_table(rows: list[dict[str, Any]]) -> str:
    """That as a table in Markdown, as shares of what is taken without a score."""
    shares = {(r["case"], r["backward"]): r["temp_bytes"][0] / r["temp_bytes"][1] for r in rows}
    lines = ["| temporary memory, but T=32768 | forward | forward + backward |", "|---|---:|---:|"]
    for case in dict.fromkeys(r["case"] for r in rows):
        cells = (f"{shares[case, backward]:.3f}×" for backward in (False, True))
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: how many times longer each contender takes than flaxattn."""
    others = ["flaxattn, no score", "flaxattn dense", "jax.nn", "flax.linen"]
    others += ["torch SDPA", "torch FlexAttention"]
    others = [name for name in others if any(row["contender"] == name for row in rows)]
    lines = [
        "| case | pass | flaxattn | " + " | ".join(others) + " |",
        "|---|---|" + "---:|" * (len(others) + 1),
    ]
    found = {(r["case"], r["pass"], r["contender"]): r for r in rows}
    for case, kind in dict.fromkeys((r["case"], r["pass"]) for r in rows):
        ours = found[case, kind, "flaxattn"]["ms"]
        cells = []
        for name in others:
            row = found.get((case, kind, name))
            cell = "" if row is None else f"{row['ms'] / ours:.2f}×"
            if row and "mask_ms" in row:
                cell += f" ({(row['ms'] + row['mask_ms']) / ours:.1f}× with its mask)"
            cells.append(cell)
        lines.append(f"| {case} | {kind} | {ours:.1f} ms | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bars: how many times longer than flaxattn the others take, forward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = [r for r in rows if r["pass"] == "forward"]
    names = list(dict.fromkeys(r["case"] for r in kept))
    others = ["jax.nn", "flax.linen", "torch SDPA", "torch FlexAttention"]
    ours = {r["case"]: r["ms"] for r in kept if r["contender"] == "flaxattn"}
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(names) + 1.5))
    for i, other in enumerate(others):
        found = {r["case"]: r["ms"] / ours[r["case"]] for r in kept if r["contender"] == other}
        heights = np.arange(len(names)) + (i - 1.5) * 0.2
        axes.barh(heights, [found.get(name, np.nan) for name in names], 0.2, label=other)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("times as long as flaxattn (forward, float32, right of the line: slower)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name starts so")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/attention"))
    parser.add_argument("--keep-freed-memory", action="store_true", help="for all contenders")
    options = parser.parse_args()
    if options.keep_freed_memory and not flaxattn.keep_freed_memory():
        parser.error("--keep-freed-memory: the C library or the environment has its own way.")
    rows = [row for case in cases() if case.name.startswith(options.only) for row in run(case)]
    plans = [] if options.only else plan_costs()
    memory = [] if options.only not in ("", "score") else score_memory()
    versions = {"jax": jax.__version__, "flaxattn": flaxattn.__version__}
    versions |= {"python": platform.python_version(), **torch_attention.versions()}
    machine = {"device": str(jax.devices()[0]), "cpu": platform.processor() or platform.machine()}
    machine["keeps_freed_memory"] = options.keep_freed_memory
    record = {"versions": versions, "machine": machine, "rows": rows, "plans": plans}
    record["score_memory"] = memory
    table = "\n\n".join([ratios(rows), *([memory_table(memory)] if memory else [])])
    write(options.out, record, table)
    draw(rows, options.out.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
