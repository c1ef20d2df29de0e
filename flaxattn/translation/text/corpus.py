"""Sentence pairs: from two aligned files, from one TSV file, or from the built-in generator."""

import random
from pathlib import Path
from typing import Literal, NamedTuple

from flaxattn.translation.config import DataConfig, data_path
from flaxattn.translation.text import builtin
from flaxattn.translation.text.lines import decode_line, split_lines

__all__ = ["Corpus", "Pairs", "load_corpus", "read_pairs"]

NAME_FILES = "Name your files with --train, --valid and --test, and their folder with --data-dir."

HELD_OUT_SEED = 1234  # fixed: a run's seed must not move pairs between the splits

Pairs = list[tuple[str, str]]


class Corpus(NamedTuple):
    """The three splits, each a list of (source, target)."""

    train: Pairs
    valid: Pairs
    test: Pairs


def load_corpus(config: DataConfig) -> Corpus:
    """The pairs that `config` names.

    Raises:
      FileNotFoundError or ValueError naming the file and line.
    """
    if not config.train:
        return _builtin_corpus(config)
    train = _load_split(config, "train")
    valid = _load_split(config, "valid")
    test = _load_split(config, "test")
    missing = (not config.valid) + (not config.test)
    if missing:
        train, held_out = _hold_out(train, missing, config.held_out)
        valid = valid or held_out.pop()
        test = test or held_out.pop()
    return Corpus(train, valid, test)


def read_pairs(paths: list[Path], invalid_lines: Literal["error", "skip"] = "error") -> Pairs:
    """The pairs of two aligned files or of one TSV file, without those blank on either side.

    Args:
      invalid_lines: stop at a line that is not valid UTF-8 or has a NUL, or leave its pair out.

    Raises:
      ValueError if the files have different numbers of lines, a TSV line has no tab, a line is
      invalid, or no pair is left; FileNotFoundError.
    """
    sides = [_read_side(path, invalid_lines) for path in paths]
    if len(sides) == 1:
        pairs = [_split_tsv(paths[0], i, line) for i, line in enumerate(sides[0], 1)]
    else:
        source, target = sides
        if len(source) != len(target):
            raise ValueError(
                f"{paths[0]} has {len(source)} lines and {paths[1]} {len(target)}; "
                "line i of one must be the translation of line i of the other."
            )
        pairs = [
            None if s is None or t is None else (s, t) for s, t in zip(source, target, strict=True)
        ]
    valid = [(pair[0].strip(), pair[1].strip()) for pair in pairs if pair is not None]
    kept = [(s, t) for s, t in valid if s and t]
    names = " and ".join(str(path) for path in paths)
    for count, what in (
        (len(pairs) - len(valid), "are not valid UTF-8 or have a NUL"),
        (len(valid) - len(kept), "are blank on one side"),
    ):
        if count:
            print(f"{names}: left out {count} pairs that {what}.")
    if not kept:
        raise ValueError(f"{names}: no sentence pair found.")
    return kept


def _read_side(path: Path, invalid_lines: Literal["error", "skip"]) -> list[str | None]:
    """The lines of a file; None stands for one to be left out."""
    try:
        lines = split_lines(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} {NAME_FILES}") from None
    texts: list[str | None] = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(decode_line(line, f"{path}, line {number}"))
        except ValueError as error:
            if invalid_lines == "error":
                raise ValueError(f"{error} --invalid-lines skip leaves such pairs out.") from error
            texts.append(None)
    return texts


def _split_tsv(path: Path, number: int, line: str | None) -> tuple[str, str] | None:
    if line is None:
        return None
    fields = line.split("\t")
    if len(fields) < 2:
        raise ValueError(
            f"{path}, line {number}: expected source TAB target, found no tab. One file is read as "
            "TSV; of two aligned files both are named: --train my.en my.de."
        )
    return fields[0], fields[1]


def _load_split(config: DataConfig, split: str) -> Pairs:
    names = getattr(config, split)
    paths = [data_path(config, name) for name in names]
    return read_pairs(paths, config.invalid_lines) if names else []


def _hold_out(pairs: Pairs, splits: int, count: int) -> tuple[Pairs, list[Pairs]]:
    """Takes `splits` lists of pairs out of `pairs`, none of which shares a source with the rest."""
    sources = sorted({source for source, _ in pairs})
    count = min(count, len(sources) // 10)
    if count == 0:
        raise ValueError(
            f"{len(pairs)} training pairs are too few to hold some out; "
            "name files with --valid and --test."
        )
    random.Random(HELD_OUT_SEED).shuffle(sources)
    taken = {source: i // count for i, source in enumerate(sources[: count * splits])}
    held_out: list[Pairs] = [[] for _ in range(splits)]
    rest: Pairs = []
    for pair in pairs:
        (held_out[taken[pair[0]]] if pair[0] in taken else rest).append(pair)
    return rest, held_out


def _builtin_corpus(config: DataConfig) -> Corpus:
    return Corpus(
        builtin.pairs("train", config.builtin_pairs),
        builtin.pairs("valid", min(500, config.held_out)),
        builtin.pairs("test", config.held_out),
    )
