"""The process that `corpora.py` starts for each corpus: prepares it, and walks over an epoch's end.

python benchmarks/corpora_process.py SOURCE TARGET SUBWORD_DROPOUT
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from flaxattn.models import EncoderDecoderConfig
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation import preparation
from flaxattn.translation.config import DataConfig, RunConfig, TranslationTraining
from flaxattn.translation.task import TranslationTask

BEFORE, AFTER, STEP_SECONDS = 150, 20, 0.1  # walked on either side of the end; of each step


def counted(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, whose CPU seconds are added to a list."""

    def count(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(time.process_time() - began)

    return count


def main(source: str, target: str, subword_dropout: str) -> None:
    """Prints one line of JSON."""
    tokenizer: list[float] = []
    model: list[float] = []
    Tokenizer.train = counted(Tokenizer.train, tokenizer)  # type: ignore[method-assign]
    encode = Tokenizer.__init__

    def made(self: Tokenizer, content: bytes) -> None:
        encode(self, content)
        self._processor.encode = counted(self._processor.encode, tokenizer)

    Tokenizer.__init__ = made  # type: ignore[method-assign]
    preparation._first_params = counted(preparation._first_params, model)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            output=f"{folder}/run",
            data=DataConfig(train=(source, target)),
            model=EncoderDecoderConfig(
                vocab_size=8000,
                features=16,
                ff_features=16,
                num_heads=2,
                encoder_layers=1,
                decoder_layers=1,
            ),
            training=TranslationTraining(subword_dropout=float(subword_dropout)),
        )
        began, wall = time.process_time(), time.perf_counter()
        prepared = preparation.prepare(config, lambda line: print(line, file=sys.stderr))
        task = TranslationTask(dataclasses.replace(config), prepared)
        task.digests()
        spent, wall = time.process_time() - began, time.perf_counter() - wall
        end = prepared.train.batches_per_epoch
        waits = []
        for step in range(max(0, end - BEFORE), end + AFTER):
            asked = time.perf_counter()
            task.batch(step)
            waits.append(time.perf_counter() - asked)
            time.sleep(STEP_SECONDS)
    row = {
        "pairs": len(prepared.corpus.train),
        "subword_dropout": float(subword_dropout),
        "beyond": spent - sum(tokenizer) - sum(model),
        "tokenizer": sum(tokenizer),
        "wall": wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "batches": end,
        "longest_wait": max(waits[1:]),  # the first is from nowhere
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
