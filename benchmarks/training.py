"""Training against what one would use instead: one run, one table and a JSON.

    uv run --group benchmark benchmarks/training.py --data-dir path/to/multi30k  # 12 minutes
    uv run --group benchmark benchmarks/training.py          # the built-in corpus instead
    uv run --group benchmark benchmarks/training.py --quick  # tiny, to try it out

Contenders: flaxattn's trainer (packed rows); PyTorch's nn.Transformer, eager and compiled, on
batches bucketed by length, where torch is installed (`uv run --with torch` brings it); and plain
flax.linen on random batches padded to the longest sentence. All on the CPU, in float32, with the
same sentence pairs, sizes, dropout, loss, optimizer, schedule and real target tokens per update,
and from the same parameters: the run stops if their validation losses differ before the first
update. Each has a process of its own. In every round each makes a few updates and is validated, in
turn, while the others sleep. Speeds are medians over rounds of one run; those of different runs are
not comparable. Seconds to a loss are those of updates alone, without compilation and validation;
unless a loss is given, it is the lowest that all have reached in the end.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
import report  # beside this file
from training_problem import Problem, prepare
from training_process import Remote  # beside this file

import flaxattn
from configs import PRESETS
from flaxattn.training.devices import describe_devices
from flaxattn.translation.config import DataConfig, RunConfig

ROUNDS, UPDATES = 15, 10
QUICK_ROUNDS, QUICK_UPDATES = 4, 5
TOLERANCE = 1e-3  # of validation losses before the first update

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flaxattn, packed": ("flaxattn_training", {}),
    "PyTorch eager, bucketed": ("torch_training", {}),
    "PyTorch compiled, bucketed": ("torch_training", {"compiled": True}),
    "flax.linen, padded": ("linen_training", {}),
}


def shrunk(config: RunConfig) -> RunConfig:
    """A model and batches so small that a round takes a second."""
    sizes = {"vocab_size": 400, "features": 32, "ff_features": 64}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **sizes, **layers),
        data=dataclasses.replace(config.data, builtin_pairs=1000),
        training=dataclasses.replace(config.training, batch_size=8, learning_rate=1e-2),
    )


def start(problem: Problem) -> tuple[dict[str, Remote], list[dict[str, Any]]]:
    """All contenders, compiled one after another, and what is known of each beforehand.

    Raises:
      ValueError if they do not train the same model on the same pairs.
    """
    remotes, rows = {}, []
    for name, (module, options) in CONTENDERS.items():
        if module == "torch_training" and importlib.util.find_spec("torch") is None:
            print(f"{name}: left out, torch is not installed")
            continue
        remotes[name] = Remote(module, problem, options)
        row = {"contender": name, **remotes[name].ask("about"), **remotes[name].ask("validate")}
        rows.append(row)
        print(
            f"{name:28} {row['parameters']:,} parameters  compiled in {row['compile_s']:.1f} s"
            f"  validation loss {row['nll']:.5f} on {row['tokens']:.0f} tokens",
            flush=True,
        )
        for key, tolerance in (("parameters", 0), ("tokens", 0), ("nll", TOLERANCE)):
            if not abs(row[key] - rows[0][key]) <= tolerance:
                raise ValueError(f"{name} has other {key} than {rows[0]['contender']}.")
    return remotes, rows


def race(
    remotes: dict[str, Remote], rounds: int, updates: int
) -> dict[str, list[dict[str, float]]]:
    """For each contender its rounds: seconds, cells, and the validation loss at their end."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in remotes}
    for i in range(rounds):
        for name, remote in remotes.items():
            row = remote.ask("train", i * updates, (i + 1) * updates)
            row["nll"] = remote.ask("validate")["nll"]
            rows[name].append(row)
            speed = row["target_tokens"] / row["seconds"]
            print(
                f"round {i + 1:2}  {name:28} {speed:8.0f} tokens/s  loss {row['nll']:.4f}",
                flush=True,
            )
    return rows


def seconds_to(rows: list[dict[str, float]], before: float, to_loss: float) -> float | None:
    """Seconds of updates until the validation loss first fell to `to_loss`, interpolated.

    Args:
      rows: of `race`; before: the loss before them.
    """
    seconds = 0.0
    for row in rows:
        if row["nll"] <= to_loss:
            return seconds + row["seconds"] * (before - to_loss) / (before - row["nll"])
        seconds, before = seconds + row["seconds"], row["nll"]
    return None


def summary(about: dict[str, Any], rows: list[dict[str, float]], to_loss: float) -> dict[str, Any]:
    """The row of one contender."""
    speeds = [row["target_tokens"] / row["seconds"] for row in rows]
    low, middle, high = np.percentile(speeds, [25, 50, 75])
    sums = {key: sum(row[key] for row in rows) for key in rows[0]}
    tokens, cells = (sums[f"source_{x}"] + sums[f"target_{x}"] for x in ("tokens", "cells"))
    return {
        "contender": about["contender"],
        "target_tokens_per_second": middle,
        "target_tokens_per_second_quartiles": [low, high],
        "real_share_of_target_cells": sums["target_tokens"] / sums["target_cells"],
        "real_share_of_all_cells": tokens / cells,
        "parameters": about["parameters"],
        "compile_s": about["compile_s"],
        "seconds_to_loss": seconds_to(rows, about["nll"], to_loss),
        "loss_before": about["nll"],
        "loss_after": rows[-1]["nll"],
        "rounds": rows,
    }


def table(rows: list[dict[str, Any]], to_loss: float) -> str:
    """Markdown: flaxattn first, the others beside it."""
    lines = [
        "| contender | real target tokens/s | quartiles | flaxattn is faster by | "
        "target cells that are tokens | of source and target | parameters | compilation | "
        f"training to validation loss {to_loss:.3f} | flaxattn is there sooner by |",
        "|---|" + "---:|" * 9,
    ]
    for row in rows:
        low, high = row["target_tokens_per_second_quartiles"]
        faster = rows[0]["target_tokens_per_second"] / row["target_tokens_per_second"]
        mine, theirs = rows[0]["seconds_to_loss"], row["seconds_to_loss"]
        cells = [
            row["contender"],
            f"{row['target_tokens_per_second']:.0f}",
            f"{low:.0f} to {high:.0f}",
            f"{faster:.2f}×",
            f"{row['real_share_of_target_cells']:.1%}",
            f"{row['real_share_of_all_cells']:.1%}",
            f"{row['parameters']:,}",
            f"{row['compile_s']:.1f} s",
            f"{theirs:.1f} s" if theirs else f"not reached ({row['loss_after']:.2f})",
            f"{theirs / mine:.2f}×" if mine and theirs else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prepares, races, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="multi30k", help="sizes of the model")
    parser.add_argument("--data-dir", type=pathlib.Path, help="the preset's files, not the corpus")
    parser.add_argument("--to-loss", type=float, help="nats per validation token")
    parser.add_argument("--quick", action="store_true", help="tiny, in a minute")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/training"))
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the contenders' processes
    jax.config.update("jax_platforms", "cpu")  # for this one
    config = PRESETS[options.preset]
    here = {"data_dir": str(options.data_dir)}
    data = dataclasses.replace(config.data, **here) if options.data_dir else DataConfig()
    # The others have no Muon and no second pass.
    training = dataclasses.replace(config.training, optimizer="adamw", r_drop=0.0)
    config = dataclasses.replace(config, data=data, training=training)
    rounds, updates = (QUICK_ROUNDS, QUICK_UPDATES) if options.quick else (ROUNDS, UPDATES)
    problem = prepare(shrunk(config) if options.quick else config, rounds * updates)
    remotes, about = start(problem)
    raced = race(remotes, rounds, updates)
    to_loss = options.to_loss or max(min(row["nll"] for row in rows) for rows in raced.values())
    for remote in remotes.values():
        remote.close()
    rows = [summary(row, raced[row["contender"]], to_loss) for row in about]
    write(options.out, problem, rows, to_loss)
    print(table(rows, to_loss))


def write(out: pathlib.Path, problem: Problem, rows: list[dict[str, Any]], to_loss: float) -> None:
    """The JSON and the table."""
    names = ["jax", "flax", "torch"]
    found = [name for name in names if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in found}
    versions |= {"python": platform.python_version(), "flaxattn": flaxattn.__version__}
    record = {
        "versions": versions,
        "machine": describe_devices(),
        "pairs": len(problem.train),
        "target_tokens_per_update": problem.tokens_per_update,
        "to_loss": to_loss,
        "model": dataclasses.asdict(problem.model),
        "training": dataclasses.asdict(problem.training),
        "rows": rows,
    }
    report.write(out, record, table(rows, to_loss))


if __name__ == "__main__":
    main()
