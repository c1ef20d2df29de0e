"""The model card: what an exported model is, from what is known of it and nothing else."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from flaxattn.translation.naming import corpora
from flaxattn.translation.text.lengths import EXTRA
from flaxattn.translation.trained.loading import Loaded
from flaxattn.translation.trained.stablehlo import LONGEST, PLATFORMS, room

__all__ = ["model_card"]

METRICS = {"bleu": "BLEU", "bleu_lc": "BLEU, lower-cased", "chrf": "chrF"}
LEFT_OUT = {"init_from"}  # a path of the machine that trained
UNSAID = {"scores", "run", "files"}  # of the result: a table of their own; what is for checks

USE = """\
With flaxattn and its `train` extra installed, where this folder is called `model`:

```bash
flaxattn translate model "A text."
```

```python
from pathlib import Path

from flaxattn.translation import Translator, load

translator = Translator(*load(Path("model")))
print(translator.translate(["A text."])[0][0].text)
```"""

NORMALISED = """\
The sources it was trained on were brought to one form, as flaxattn does by itself and the programs
do not: `re.sub(r"\\s", " ", unicodedata.normalize("{form}", text))`.

"""

ALONE = """\
`stablehlo/` holds the encoder and the decode step as programs of `jax.export`, for {platforms}, any
batch and any source of up to {longest} tokens, padding included. They need `jax`, `flatbuffers` and
the weights, but not flaxattn. A damaged program may run and give other numbers: what is read is
compared with its SHA-256 in `manifest.json`.

```python
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import sentencepiece
from jax import export
from safetensors.flax import load

folder = Path("model")
files = json.loads((folder / "manifest.json").read_text())["files"]


def read(name):
    content = (folder / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == files[name]["sha256"], name
    return content


weights = load(read("model.safetensors"))
tokenizer = sentencepiece.SentencePieceProcessor(model_proto=read("tokenizer.model"))
encode, decode_step = (
    jax.jit(export.deserialize(read(f"stablehlo/{{name}}.bin")).call)
    for name in ("encode", "decode_step")
)

source = np.array([tokenizer.encode("A text.", add_eos=True)], np.int32)  # [B, S]
encoded, state = encode(weights, source)
tokens, found = np.array([{bos_id}], np.int32), []  # [B]
for index in range({ratio} * source.shape[1] + {extra}):
    logits, state = decode_step(weights, state, tokens, np.int32(index))
    tokens = np.asarray(logits.argmax(-1), np.int32)
    if tokens[0] == {eos_id}:
        break
    found.append(int(tokens[0]))
print(tokenizer.decode(found))
```

Sources of a batch are padded with token {pad_id}. A state has room for {ratio} S + {extra} tokens;
past them logits are NaN. All its arrays have the batch as their first axis, so that a beam search
takes rows of it with `jax.tree.map`. `export.deserialize(...).mlir_module_serialized` is the
portable StableHLO bytecode."""


def model_card(loaded: Loaded, run: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The card in Markdown, with the YAML header of the Hugging Face hub.

    Args:
      run, result: as in `exporting.export`; what they do not tell is left out.
    """
    parts = [
        _header(run, result),
        f"# {_title(run)}",
        _summary(loaded, run, result),
        f"## Use\n\n{USE}",
        _scores(result),
        _training(run, result),
        _architecture(loaded),
        f"## Without flaxattn\n\n{_alone(loaded)}",
        _limits(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(run: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    lines = ["library_name: flaxattn", "pipeline_tag: translation"]
    if _is_builtin(run):
        lines += ["language:", "- en", "- de"]
    if result.get("scores"):
        lines += ["metrics:", *sorted({f"- {name.split('_')[0]}" for name in result["scores"]})]
    return "\n".join(["---", *lines, "tags:", "- translation", "- jax", "- flax", "---"])


def _title(run: Mapping[str, Any]) -> str:
    name = Path(run.get("output", "")).name
    return f"Translation model {name}".strip()


def _summary(loaded: Loaded, run: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(loaded.params))
    text = (
        f"An encoder-decoder Transformer of {size:,} parameters that translates sentences, "
        f"{loaded.tokenizer.vocab_size:,} SentencePiece tokens for source and target together, "
        "trained with flaxattn."
    )
    return f"{text} {_data(run)}".strip()


def _data(run: Mapping[str, Any]) -> str:
    """What it was trained on; the names of files alone, since their folders are a machine's."""
    data = run.get("data")
    if data is None:
        return ""
    if _is_builtin(run):
        return (
            "It was trained on flaxattn's built-in English-German corpus, sentences that a small "
            "grammar makes, and translates no others."
        )
    named = [
        [f"`{Path(name).name}`" for name in files]
        for _, part in corpora(data["train"])
        for files in part
    ]
    sides = ["{} to {}".format(*x) if len(x) == 2 else f"the pairs of {x[0]}" for x in named]
    return f"It was trained on {' and '.join(sides)}."


def _is_builtin(run: Mapping[str, Any]) -> bool:
    return "data" in run and not run["data"]["train"]


def _scores(result: Mapping[str, Any]) -> str:
    if not result.get("scores"):
        return ""
    rows = [
        (METRICS.get(name, name), f"{score['value']:.2f}", f"`{score['signature']}`")
        for name, score in result["scores"].items()
    ]
    table = _table(("metric", "score", "SacreBLEU signature"), rows)
    return f"## Scores\n\nOn the test split of the run that trained it.\n\n{table}"


def _training(run: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    rows = [(name.replace("_", " "), value) for name, value in result.items() if name not in UNSAID]
    settings = {k: v for k, v in run.get("training", {}).items() if k not in LEFT_OUT}
    parts = [_table(("of the run", ""), rows)] if rows else []
    if settings:
        parts.append(_table(("setting", "value"), settings.items()))
    return "\n\n".join(["## Training", *parts]) if parts else ""


def _architecture(loaded: Loaded) -> str:
    fields = dataclasses.asdict(loaded.model.config) | {
        f"decoding: {name}": value for name, value in dataclasses.asdict(loaded.decoding).items()
    }
    return f"## Architecture and decoding\n\n{_table(('field', 'value'), fields.items())}"


def _alone(loaded: Loaded) -> str:
    tokenizer = loaded.tokenizer
    how = tokenizer.normalization
    return (NORMALISED.format(form=how.upper()) if how != "none" else "") + ALONE.format(
        platforms=", ".join(PLATFORMS),
        longest=LONGEST,
        ratio=room(loaded.decoding),
        extra=EXTRA,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )


def _limits(run: Mapping[str, Any]) -> str:
    lines = ["It translates sentence by sentence, in the direction it was trained in."]
    length = run.get("training", {}).get("sequence_length")
    if length:
        lines.append(f"It has seen no sentence of more than {length} tokens on either side.")
    lines.append("Text unlike its training text is translated badly, and nothing warns of that.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in line) + " |" for line in lines)


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.replace("|", "\\|").split())
