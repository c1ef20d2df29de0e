"""Translation with a key/value cache against doing without one: one run, one table and a JSON.

    uv run --group benchmark benchmarks/decoding.py            # 4 minutes on two cores
    uv run --group benchmark benchmarks/decoding.py --quick    # tiny, to try it out

Greedy search and beams of 5, a batch at a time, every translation being made exactly as long as
asked for, so that all contenders do the same work: flaxattn (`decode`, as `translate` uses it); the
same search over steps that compute the whole prefix anew; and where torch is installed (`uv run
--with torch` brings it), PyTorch's nn.Transformer in the usual loop, which keeps the encoder's
output and computes the prefix anew. All have the same parameters; the run stops if greedy search
finds other tokens in one than in another. In every round each contender runs once, in turn.
"""

import argparse
import dataclasses
import functools
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from report import write  # beside this file

from configs import PRESETS
from flaxattn import EncoderDecoder, EncoderDecoderConfig, keep_freed_memory
from flaxattn.search import Hypotheses, Lengths, SpecialTokens, beam_search, greedy
from flaxattn.training.devices import describe_devices, split_cpu
from flaxattn.training.mesh import data_mesh, place
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.decode import decode
from flaxattn.translation.initial import init_params

ROUNDS, BATCH, SOURCE, LENGTH = 5, 64, 24, 32
PAD, BOS, EOS = 0, 1, 2
IDS = SpecialTokens(BOS, EOS, PAD)
BEAMS = (1, 5)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model and a batch of sources."""

    config: EncoderDecoderConfig
    params: Any
    source: np.ndarray  # int32 [B, S], without padding
    length: int  # T, of every translation


def make_problem(config: EncoderDecoderConfig, batch: int, source: int, length: int) -> Problem:
    """Random parameters and sources."""
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (batch, source))
    params = init_params(EncoderDecoder(config, pad_id=PAD), 0)
    return Problem(config, params, ids.astype(np.int32), length)


def cached(problem: Problem, beam_size: int) -> Callable[[], np.ndarray]:
    """flaxattn as it is used: the tokens [B, T]."""
    mesh, batch = data_mesh(), len(problem.source)
    exactly = np.full(batch, problem.length, np.int32)
    keys = jax.random.split(jax.random.key(0), batch)
    rows = place((problem.source, exactly, exactly, keys), mesh, "data")
    params = place(problem.params, mesh)

    def run() -> np.ndarray:
        found = decode(
            (EncoderDecoder(problem.config, pad_id=PAD),),
            (params,),
            *rows,
            config=DecodingConfig(beam_size=beam_size),
            padded_length=problem.length,
            special_tokens=IDS,
            mesh=mesh,
        )
        return np.asarray(found.tokens[:, 0])

    return run


def uncached(problem: Problem, beam_size: int) -> Callable[[], np.ndarray]:
    """The same search and devices; a step decodes all tokens before it once more."""
    model, mesh = EncoderDecoder(problem.config, pad_id=PAD), data_mesh()

    def search(params: Any, source: jax.Array) -> Hypotheses:
        apply: Any = functools.partial(model.apply, {"params": params})
        segments = jnp.ones_like(source)
        encoded = apply(source, segments, deterministic=True, method="encode")
        encoded, segments = (jnp.repeat(x, beam_size, axis=0) for x in (encoded, segments))

        def decode_step(tokens: jax.Array, index: jax.Array, prefixes: jax.Array) -> Any:
            prefixes = prefixes.at[:, index].set(tokens)
            decoded = apply(
                prefixes,
                encoded,
                segments,
                jnp.ones_like(prefixes),
                deterministic=True,
                method="decode",
            )
            return apply(decoded[:, index], method="logits"), prefixes

        batch = len(source)
        exactly = jnp.full(batch, problem.length)
        lengths = Lengths(exactly, exactly, padded_length=problem.length)
        asked: Any = {"batch_size": batch, "special_tokens": IDS, "lengths": lengths}
        state = jnp.full((batch, problem.length), PAD, jnp.int32)
        if beam_size == 1:
            return greedy(decode_step, state, **asked)
        return beam_search(decode_step, state, **asked, beam_size=beam_size)

    rows = PartitionSpec("data")
    specs = {"in_specs": (PartitionSpec(), rows), "out_specs": rows, "check_vma": False}
    compiled = jax.jit(jax.shard_map(search, mesh=mesh, **specs))
    params, source = place(problem.params, mesh), place(problem.source, mesh, "data")
    return lambda: np.asarray(compiled(params, source).tokens[:, 0])


def contenders() -> dict[str, Callable[[Problem, int], Callable[[], np.ndarray]]]:
    """By name, how each makes what is timed."""
    found = {"flaxattn, cached": cached, "flaxattn, uncached": uncached}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch: left out, torch is not installed")
        return found
    import torch_decoding  # beside this file

    return found | {"PyTorch, usual loop": torch_decoding.usual_loop}


def measure(problem: Problem, beam_size: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender; seconds are medians over rounds."""
    runs = {name: make(problem, beam_size) for name, make in contenders().items()}
    first = {name: run() for name, run in runs.items()}  # compiles
    if beam_size == 1:
        wanted = first["flaxattn, cached"]
        for name, tokens in first.items():
            if (tokens != wanted).mean() > 0.01:  # a tie may fall another way
                raise ValueError(f"{name} finds other tokens than flaxattn.")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return [
        {
            "contender": name,
            "beam_size": beam_size,
            "sentences_per_second": len(problem.source) / median[name],
            "times_as_long": median[name] / median["flaxattn, cached"],
            "seconds": sorted(values),
        }
        for name, values in seconds.items()
    ]


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="multi30k", choices=PRESETS)
    parser.add_argument("--quick", action="store_true", help="a tiny model, few rounds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/decoding"))
    options = parser.parse_args()
    keep_freed_memory()  # for all contenders
    split_cpu(BATCH)
    config, sizes, rounds = PRESETS[options.preset].model, (BATCH, SOURCE, LENGTH), ROUNDS
    if options.quick:
        small = {"vocab_size": 100, "features": 16, "ff_features": 16, "num_heads": 2}
        layers = {"encoder_layers": 1, "decoder_layers": 1}
        config, sizes, rounds = dataclasses.replace(config, **small, **layers), (8, 5, 8), 2
    problem = make_problem(config, *sizes)
    about = (
        f"{sizes[0]} sources of {sizes[1]} tokens, translations of {sizes[2]}; D={config.features},"
        f" {config.decoder_layers} layers, V={config.vocab_size}; {describe_devices()}"
    )
    rows = [row for beam_size in BEAMS for row in measure(problem, beam_size, rounds)]
    lines = [about, "", "| contender | beam | sentences/s | times as long |", "|---|--:|--:|--:|"]
    lines += [
        f"| {r['contender']} | {r['beam_size']} | {r['sentences_per_second']:.1f} "
        f"| {r['times_as_long']:.2f} |"
        for r in rows
    ]
    print("\n".join(lines))
    write(options.out, {"about": about, "rows": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
