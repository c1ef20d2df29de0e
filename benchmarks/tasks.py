"""What each task's default comes to, in what time, beside what needs no Transformer: one table.

    uv run --group benchmark --with scikit-learn benchmarks/tasks.py      # ten minutes on two cores
    uv run --group benchmark --with scikit-learn benchmarks/tasks.py --runs DIR  # of these runs

A run is begun, or gone on with, by the command of its task, in a process of its own. Texts to test
with hold combinations that no training text has.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from report import write  # beside this file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from flaxattn.tasks.builtin import classification, labelling
from flaxattn.tasks.metrics import entity_scores

TRAIN, TEST = 20_000, 1000  # texts, as in the presets
RUNS = {
    "language": ["language"],
    "labelling": ["labelling"],
    "classification": ["classification"],
    "denoising": ["denoising"],
    "denoising, static masks": ["denoising", "--static-masks"],
}


def trained(name: str, folder: pathlib.Path, steps: int | None) -> dict[str, Any]:
    """The result of a run."""
    output, began = folder / name.replace(", ", "_").replace(" ", "_"), time.perf_counter()
    words = [*RUNS[name], "--output", str(output), *(["--steps", str(steps)] if steps else [])]
    if not (output / "result.json").exists():
        subprocess.run([sys.executable, "-m", "flaxattn", "train", *words], check=True)
    result = json.loads((output / "result.json").read_text())
    return result | {"process_seconds": round(time.perf_counter() - began, 1)}


def of_words() -> float:
    """The F1 of the tag that each word has most often, O for words never seen."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for words, tags in labelling.sentences("train", TRAIN):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    words, tags = zip(*labelling.sentences("test", TEST), strict=True)
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    found = [[best.get(word, "O") for word in sentence] for sentence in words]
    return entity_scores(tags, found).micro.f1


def of_bags(longest: int) -> float:
    """The accuracy of logistic regression on how often words, or words together, occur."""
    (labels, texts), (wanted, unseen) = (
        zip(*classification.texts(split, count), strict=True)
        for split, count in (("train", TRAIN), ("test", TEST))
    )
    bag = CountVectorizer(ngram_range=(1, longest))
    model = LogisticRegression(max_iter=1000).fit(bag.fit_transform(texts), labels)
    return float(model.score(bag.transform(unseen), wanted))


def main() -> None:
    """Trains what is not trained yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/tasks"))
    parser.add_argument("--steps", type=int, help="of each run, to try it out")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/tasks"))
    options = parser.parse_args()
    found = {name: trained(name, options.runs, options.steps) for name in RUNS}
    words, bag, pairs = of_words(), of_bags(1), of_bags(2)
    told = {
        "language": (f"{found['language']['nll_to_entropy']:.3f} × the entropy", "1"),
        "labelling": (
            f"F1 {found['labelling']['entities']['all']['f1']:.2%}",
            f"each word's commonest tag: {words:.1%}",
        ),
        "classification": (
            f"accuracy {found['classification']['accuracy']:.2%}",
            f"bag of words {bag:.1%}, of words and pairs {pairs:.1%}",
        ),
    } | {
        name: (f"{found[name]['test_accuracy']:.2%} told, nll {found[name]['test_loss']:.3f}", "")
        for name in RUNS
        if name.startswith("denoising")
    }
    hardware = found["language"]["hardware"]
    lines = [
        f"{hardware}; texts to test with hold combinations that no training text has.",
        "",
        "| task | on the test split | without a Transformer | parameters | steps | seconds |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"| {name} | {told[name][0]} | {told[name][1]} | {of['parameters']:,} | {of['steps']} "
            f"| {of['training_seconds']:.0f} |"
            for name, of in found.items()
        ),
    ]
    baselines = {"labelling_f1": words, "bag_of_words": bag, "bag_of_pairs": pairs}
    write(options.out, {"runs": found, "baselines": baselines}, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
