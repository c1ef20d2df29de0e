"""What preparing a corpus costs, by its size: CPU seconds, memory, and the wait at an epoch's end.

    uv run benchmarks/corpora.py                       # 10k, 100k and 1M generated pairs
    uv run benchmarks/corpora.py --pairs 10000000      # GB on the disk, a quarter of an hour
    uv run benchmarks/corpora.py --quick               # tiny, to try it out
    PYTHONPATH=OTHER python benchmarks/corpora.py --code before --out before    # another version
    uv run benchmarks/corpora.py --beside before.json  # and both in one table

The pairs are generated: words of a skewed distribution, lengths as of sentences. Each size is
prepared in a process of its own. The tokenizer's own work, which SentencePiece does, is counted
apart, and so are fresh parameters. A step is then a rest of 100 ms, in which nothing is computed:
what is seen is how long a batch is waited for around the end of the first epoch.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from report import write  # beside this file

CHILD = pathlib.Path(__file__).with_name("corpora_process.py")
WORDS, CHUNK = 60_000, 20_000
ABOUT = (
    "CPU seconds of preparation beyond the tokenizer's own (learning, encoding); peak memory of "
    "the process, Python, jax and its compiler included; the longest wait for a batch around an "
    "epoch's end"
)


def words_of(rng: np.random.Generator) -> np.ndarray:
    """A vocabulary; the first words are the most frequent, and short."""
    syllables = ["".join(x) for x in itertools.product("bdfgklmnprst", "aeiou", ["", "n", "r"])]
    counts = 1 + (np.log1p(np.arange(WORDS)) / 3).astype(int)
    return np.array(["".join(rng.choice(syllables, n)) for n in counts.tolist()], object)


def write_pairs(folder: pathlib.Path, count: int) -> list[str]:
    """Two aligned files of so many pairs, the same whenever they are made; their names."""
    rng = np.random.default_rng(count)
    sides = [words_of(rng) for _ in range(2)]
    paths = [folder / f"{count}.{side}" for side in ("source", "target")]
    with paths[0].open("w") as source, paths[1].open("w") as target:
        for start in range(0, count, CHUNK):
            n = min(CHUNK, count - start)
            lengths = np.clip(rng.poisson(rng.gamma(4.0, 3.0, n)), 2, 80)
            for file, words in zip((source, target), sides, strict=True):
                lengths = np.clip(lengths + rng.integers(-1, 2, n), 1, 90)
                ranks = (WORDS ** rng.random(lengths.sum())).astype(int) - 1
                ends = np.cumsum(lengths)[:-1]
                file.writelines(" ".join(line) + "\n" for line in np.split(words[ranks], ends))
    return [str(path) for path in paths]


def measured(paths: list[str], subword_dropout: float) -> dict[str, Any]:
    """What a process has seen that prepares these files."""
    command = [sys.executable, str(CHILD), *paths, str(subword_dropout)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        ABOUT,
        "",
        "| code | pairs | subword dropout | beyond the tokenizer, CPU s | tokenizer, CPU s "
        "| peak memory, MiB | longest wait, s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['code']} | {r['pairs']:,} | {r['subword_dropout']:g} | {r['beyond']:.1f} "
            f"| {r['tokenizer']:.1f} | {r['peak_mib']:.0f} | {r['longest_wait']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few pairs")
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--subword-dropout", type=float, nargs="+", default=[0.0])
    parser.add_argument("--code", default="now", help="a name for what PYTHONPATH leads to")
    parser.add_argument("--beside", type=pathlib.Path, help="a JSON whose rows are told first")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/corpora"))
    options = parser.parse_args()
    rows = json.loads(options.beside.read_text())["rows"] if options.beside else []
    with tempfile.TemporaryDirectory() as folder:
        for count in [2000] if options.quick else options.pairs:
            paths = write_pairs(pathlib.Path(folder), count)
            for dropout in options.subword_dropout:
                rows.append({"code": options.code} | measured(paths, dropout))
                print(rows[-1], flush=True)
            for path in paths:
                pathlib.Path(path).unlink()
    print(table(rows))
    write(options.out, {"about": ABOUT, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
