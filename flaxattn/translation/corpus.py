"""Sentence pairs: from two aligned files, from one TSV file, or from the built-in generator."""

import random
from pathlib import Path
from typing import NamedTuple

from flaxattn.translation import builtin
from flaxattn.translation.config import DataConfig, data_path

__all__ = ["Corpus", "Pairs", "load_corpus", "read_lines", "read_pairs"]

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


def read_pairs(paths: list[Path]) -> Pairs:
    """The pairs of two aligned files or of one TSV file, without those blank on either side.

    Raises:
      ValueError if the files have different numbers of lines, a TSV line has no tab, or no pair
      is left.
    """
    if len(paths) == 1:
        pairs = [_split_tsv(paths[0], i, line) for i, line in enumerate(read_lines(paths[0]), 1)]
    else:
        source, target = (read_lines(path) for path in paths)
        if len(source) != len(target):
            raise ValueError(
                f"{paths[0]} has {len(source)} lines and {paths[1]} {len(target)}; "
                "line i of one must be the translation of line i of the other."
            )
        pairs = list(zip(source, target, strict=True))
    pairs = [(s.strip(), t.strip()) for s, t in pairs]
    kept = [(s, t) for s, t in pairs if s and t]
    names = " and ".join(str(path) for path in paths)
    if len(kept) < len(pairs):
        print(f"{names}: left out {len(pairs) - len(kept)} pairs that are blank on one side.")
    if not kept:
        raise ValueError(f"{names}: no sentence pair found.")
    return kept


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file, broken at "\n" alone; a byte-order mark and "\r\n" are dropped.

    Raises:
      FileNotFoundError naming the file; ValueError naming file and line of invalid UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Name your files with --train, --valid and --test, "
            "and their folder with --data-dir."
        )
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [_decode(path, i, line) for i, line in enumerate(lines, 1)]


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: invalid UTF-8 at byte {error.start} of the line; "
            "convert the file to UTF-8, for example with iconv."
        ) from error


def _split_tsv(path: Path, number: int, line: str) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) < 2:
        raise ValueError(f"{path}, line {number}: expected source TAB target, found no tab.")
    return fields[0], fields[1]


def _load_split(config: DataConfig, split: str) -> Pairs:
    names = getattr(config, split)
    return read_pairs([data_path(config, name) for name in names]) if names else []


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
