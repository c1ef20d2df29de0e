"""The alignment error rate of a run on the built-in corpus, whose grammar knows its alignments.

    uv run train.py                                       # runs/tiny, 3 minutes on two cores
    uv run benchmarks/alignments.py runs/tiny             # 100 pairs of its test split
    uv run benchmarks/alignments.py runs/tiny --split valid --pairs 300 --seed 1

How attention is read was chosen on the validation split.
"""

import argparse
import pathlib

from grammar_links import error_rate, gold  # beside this file

from flaxattn.translation import load
from flaxattn.translation.decoding.aligning import align
from flaxattn.translation.decoding.forced import PairScorer
from flaxattn.translation.text.builtin.corpus import SPLITS, examples


def main() -> None:
    """Prints the rate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path, help="the folder of a run")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    words = parser.parse_args()
    golds = [gold(x) for x in examples(words.split, words.pairs, seed=words.seed)]
    scorer = PairScorer(*load(words.run))
    found = align(scorer, [x.source for x in golds], [x.target for x in golds])
    rate = error_rate([set(links) for links in found], golds)
    print(f"alignment error rate {rate:.1%} on {words.pairs} pairs of {words.split}")


if __name__ == "__main__":
    main()
