"""A run's test split translated by flaxattn and by CTranslate2, in float32 and in int8.

    uv run --extra ctranslate2 benchmarks/engines.py runs/multi30k_quick --out results/engines

All have the same sources, beams, batches and cores, a batch on each; they take turns, and once is
not counted. BLEU is lower-cased, of the references that the run kept; sizes are of weights.
"""

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ctranslate2
import report  # beside this file
import sentencepiece

from flaxattn.memory import keep_freed_memory
from flaxattn.training.devices import describe_devices, split_cpu
from flaxattn.translation import DecodingConfig, Translator, load
from flaxattn.translation.layout import TEST, TOKENIZER, WEIGHTS
from flaxattn.translation.text.scoring import score
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.to_ctranslate2 import export_ctranslate2

Engine = Callable[[list[str]], list[str]]
CORES = len(os.sched_getaffinity(0))
BATCH = 64  # texts


def main() -> None:
    """Writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path, help="the folder of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("engines"))
    words = parser.parse_args()
    sources, references = (
        (words.run / TEST[side]).read_text("utf-8").splitlines() for side in ("source", "reference")
    )
    with tempfile.TemporaryDirectory() as folder:
        engines, sizes = _engines(words.run, pathlib.Path(folder))
        outputs = {name: engine(sources) for name, engine in engines.items()}
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(words.rounds):
            for name, engine in engines.items():
                began = time.perf_counter()
                engine(sources)
                seconds[name].append(time.perf_counter() - began)
    base = seconds["flaxattn, float32"]
    rows = [
        {
            "engine": name,
            "mebibytes": sizes[name] / 2**20,
            "bleu_lc": next(s.value for s in score(found, references) if s.name == "bleu_lc"),
            "sentences_per_second": len(sources) / statistics.median(seconds[name]),
            "times_as_fast": statistics.median(
                ours / theirs for ours, theirs in zip(base, seconds[name], strict=True)
            ),
            "seconds": seconds[name],
        }
        for name, found in outputs.items()
    ]
    record = {"hardware": describe_devices(), "sentences": len(sources), "rows": rows}
    report.write(words.out, record, _table(record))
    print(_table(record))


def _engines(run: pathlib.Path, folder: pathlib.Path) -> tuple[dict[str, Engine], dict[str, int]]:
    """What translates, and the bytes of its weights."""
    keep_freed_memory()
    split_cpu(BATCH)  # as `flaxattn translate` does
    loaded = load(run)
    export(folder / "ours", loaded)
    translator = Translator(*loaded, batch_size=BATCH)
    engines: dict[str, Engine] = {
        "flaxattn, float32": lambda texts: [x[0].text for x in translator.translate(texts)]
    }
    sizes = {"flaxattn, float32": (folder / "ours" / WEIGHTS).stat().st_size}
    for kind in ("float32", "int8"):
        name = f"CTranslate2, {kind}"
        export_ctranslate2(folder / kind, loaded, kind)
        sizes[name] = (folder / kind / "model.bin").stat().st_size
        model = ctranslate2.Translator(
            str(folder / kind), device="cpu", inter_threads=CORES, intra_threads=1
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / kind / TOKENIZER))
        engines[name] = functools.partial(_by_ctranslate2, model, pieces, loaded.decoding)
    return engines, sizes


def _by_ctranslate2(
    model: Any, pieces: Any, decoding: DecodingConfig, texts: list[str]
) -> list[str]:
    found = model.translate_batch(
        pieces.encode(texts, out_type=str),
        beam_size=decoding.beam_size,
        length_penalty=decoding.length_penalty,
        max_batch_size=BATCH,
    )
    return [pieces.decode(x.hypotheses[0]) for x in found]


def _table(record: dict[str, Any]) -> str:
    lines = [
        f"{record['sentences']} sentences; {record['hardware']}",
        "",
        "| engine, weights | MiB | BLEU lower-cased | sentences/s | times as fast |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {x['engine']} | {x['mebibytes']:.1f} | {x['bleu_lc']:.2f} | "
        f"{x['sentences_per_second']:.0f} | {x['times_as_fast']:.2f} |"
        for x in record["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
