"""Whether GPT-2 and BERT by their files are those of `transformers`: logits beside logits.

    uv run --with torch --with transformers benchmarks/pretrained.py    # a minute on two cores

Makes models with random parameters, all of them, norms and biases too; nothing is downloaded. Where
one Python has PyTorch and another jax, write with the first and compare with the second:

    python benchmarks/pretrained.py write FOLDER
    python benchmarks/pretrained.py compare FOLDER

`write tests/kept_pretrained --small` made the files of `tests/test_pretrained.py`. A file NAME
is as `save_pretrained` writes it; NAME-outputs holds tokens [B, T], their lengths, and what the
model made of each row up to its length. Compared are rows with padding and the same texts packed
into one row. Fails where a number is further off than 1e-4.
"""

import argparse
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

BOUND = 1e-4
SMALL = {"vocab": 50, "width": 16, "hidden": 24, "heads": 2, "layers": 2, "positions": 12}
USUAL = {"vocab": 997, "width": 96, "hidden": 160, "heads": 6, "layers": 5, "positions": 72}
LENGTHS = {True: [7, 4], False: [61, 40, 9]}
LABELS = 3


def models(size: dict[str, int]) -> dict[str, Any]:
    """Those of `transformers`, by name."""
    import transformers as hf

    gpt2 = {
        "vocab_size": size["vocab"],
        "n_embd": size["width"],
        "n_inner": size["hidden"],
        "n_head": size["heads"],
        "n_layer": size["layers"],
        "n_positions": size["positions"],
        "bos_token_id": None,
        "eos_token_id": None,
    }
    bert = hf.BertConfig(
        vocab_size=size["vocab"],
        hidden_size=size["width"],
        intermediate_size=size["hidden"],
        num_attention_heads=size["heads"],
        num_hidden_layers=size["layers"],
        max_position_embeddings=size["positions"],
        num_labels=LABELS,
    )
    return {
        "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "gpt2-untied": hf.GPT2LMHeadModel(hf.GPT2Config(tie_word_embeddings=False, **gpt2)),
        "bert": hf.BertForMaskedLM(bert),
        "bert-vectors": hf.BertModel(bert),
        "bert-token_labels": hf.BertForTokenClassification(bert),
        "bert-text_labels": hf.BertForSequenceClassification(bert),
    }


def write(folder: pathlib.Path, small: bool) -> None:
    """Models as files, and what they make of some rows, each text alone."""
    import torch

    torch.manual_seed(0)
    size = SMALL if small else USUAL
    for name, model in models(size).items():
        if small and name not in ("gpt2", "bert"):
            continue
        for path, parameter in model.named_parameters():
            is_scale = path.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight", "Norm.weight"))
            torch.nn.init.normal_(parameter, 1.0 if is_scale else 0.0, 0.3 if small else 0.1)
        model.save_pretrained(folder / name)
        shutil.move(folder / name / "model.safetensors", folder / f"{name}.safetensors")
        shutil.rmtree(folder / name)
        lengths = np.array(LENGTHS[small], np.int32)
        rng = np.random.default_rng(1)
        outputs = {"lengths": lengths, "num_heads": np.array(size["heads"], np.int32)}
        for what, below in (("tokens", size["vocab"]), ("types", 2)):
            cells = rng.integers(0, below, (len(lengths), lengths.max())).astype(np.int32)
            outputs[what] = np.where(np.arange(lengths.max()) < lengths[:, None], cells, 0)
        save_file(
            outputs | {"outputs": outputs_of(model, outputs)},
            folder / f"{name}-outputs.safetensors",
        )


def outputs_of(model: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
    """[B, T, ...]: of each text alone, zeros after its end; for a label of a text at its start."""
    import torch

    found = []
    for tokens, types, length in zip(rows["tokens"], rows["types"], rows["lengths"], strict=True):
        given = {"input_ids": torch.from_numpy(tokens[None, :length]).long()}
        if "Bert" in type(model).__name__:
            given["token_type_ids"] = torch.from_numpy(types[None, :length]).long()
        with torch.no_grad():
            one = model.eval()(**given)[0][0].numpy()
        one = one.reshape(-1, one.shape[-1])
        found.append(np.pad(one, ((0, len(tokens) - len(one)), (0, 0))))
    return np.stack(found).astype(np.float32)


def difference(path: pathlib.Path) -> tuple[float, float]:
    """The largest one from what `transformers` made, one text a row, and packed."""
    from flaxattn import DecoderOnly, EncoderOnly, MaskedTokens, TextLabels, TokenLabels
    from flaxattn.models.pretrained import bert, gpt2

    rows = load_file(path.with_name(f"{path.stem}-outputs.safetensors"))
    arrays, heads, name = load_file(path), int(rows["num_heads"]), path.stem
    if name.startswith("gpt2"):
        config, params = gpt2(arrays, heads)
        model: Any = DecoderOnly(config)
    else:
        head = {"bert": "masked_tokens", "bert-vectors": None}.get(name, name.removeprefix("bert-"))
        config, params = bert(arrays, heads, head)
        kinds = {None: EncoderOnly, "masked_tokens": MaskedTokens}
        labels = {"token_labels": TokenLabels, "text_labels": TextLabels}
        model = labels[head](config, num_labels=LABELS) if head in labels else kinds[head](config)
    seen = np.arange(rows["tokens"].shape[1]) < rows["lengths"][:, None]
    told = rows["outputs"][seen] if name != "bert-text_labels" else rows["outputs"][:, 0]
    ids = seen * np.arange(1, len(seen) + 1, dtype=np.int32)[:, None]
    found = []
    for layout in (np.asarray, lambda cells: cells[seen][None]):
        given = {"token_types": layout(rows["types"])} if "bert" in name else {}
        tokens, segments = layout(rows["tokens"]), layout(ids)
        made = model.apply(
            {"params": params}, tokens, segment_ids=segments, deterministic=True, **given
        )
        made = np.asarray(made)[segments > 0]
        starts = np.cumsum([0, *rows["lengths"][:-1]])
        made = made[starts] if name == "bert-text_labels" else made
        found.append(float(np.abs(made - told).max()))
    return found[0], found[1]


def compare(folder: pathlib.Path) -> bool:
    """Whether all are near; prints how near."""
    worst = 0.0
    for path in sorted(folder.glob("*.safetensors")):
        if not path.stem.endswith("-outputs"):
            alone, packed = difference(path)
            worst = max(worst, alone, packed)
            print(f"{path.stem:18} one text a row {alone:.1e}   packed {packed:.1e}")
    print(f"largest difference: {worst:.1e}; bound: {BOUND:.0e}")
    return worst <= BOUND


def main() -> bool:
    """Whether the models are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["write", "compare"], help="default: both")
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--small", action="store_true", help="a GPT-2 and a BERT of 20 kB each")
    given = parser.parse_args()
    if given.what and not given.folder:
        parser.error(f"{given.what} needs a folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or pathlib.Path(temporary)
        if given.what != "compare":
            write(folder, given.small)
        return given.what == "write" or compare(folder)


if __name__ == "__main__":
    sys.exit(not main())
