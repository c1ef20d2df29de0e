"""Sentence pairs: from two aligned files, from one TSV file, or from the built-in generator."""

import random
from pathlib import Path
from typing import NamedTuple

from flaxattn.training.screen import Tell
from flaxattn.translation.config import DataConfig, data_path
from flaxattn.translation.text import builtin
from flaxattn.translation.text.columns import describe_columns, find_columns, split_line
from flaxattn.translation.text.lines import decode_line, split_lines
from flaxattn.translation.text.normalization import normalize_source, normalize_target

__all__ = ["Corpus", "Pairs", "load_corpus", "read_pairs"]

NAME_FILES = "Name your files with --train, --valid and --test, and their folder with --data-dir."

HELD_OUT_SEED = 1234  # fixed: a run's seed must not move pairs between the splits

Pairs = list[tuple[str, str]]


class Corpus(NamedTuple):
    """The three splits, each a list of (source, target)."""

    train: Pairs
    valid: Pairs
    test: Pairs


def load_corpus(config: DataConfig, tell: Tell) -> Corpus:
    """The pairs that `config` names, normalised as it says.

    Args:
      tell: is given what a person should know of them, line by line.

    Raises:
      FileNotFoundError or ValueError naming the file and line.
    """
    if not config.train:
        return _builtin_corpus(config)
    train, valid, test = (
        read_pairs([data_path(config, name) for name in names], config, tell) if names else []
        for names in (config.train, config.valid, config.test)
    )
    missing = (not config.valid) + (not config.test)
    if missing:
        train, held_out = _hold_out(train, missing, config.held_out, tell)
        valid = valid or held_out.pop()
        test = test or held_out.pop()
    return Corpus(train, valid, test)


def read_pairs(paths: list[Path], config: DataConfig, tell: Tell) -> Pairs:
    """The pairs of two aligned files or of one TSV file, without those blank on either side.

    Args:
      config: says what to do with lines that are no text, with columns, and how to normalise.
      tell: as in `load_corpus`.

    Raises:
      ValueError if the files have different numbers of lines, a TSV line has too few columns, a
      line is invalid, or no pair is left; FileNotFoundError.
    """
    sides = [_read_side(path, config) for path in paths]
    if len(sides) == 1:
        pairs = _split_tsv(paths[0], sides[0], config, tell)
    else:
        pairs = _aligned(paths, *sides)
    names = " and ".join(str(path) for path in paths)
    valid = [pair for pair in pairs if pair is not None]
    normal = [_normalized(pair, config) for pair in valid]
    kept = [(s, t) for s, t in normal if s and t]
    changed = sum(
        (s.strip(), t.strip()) != pair for (s, t), pair in zip(valid, normal, strict=True)
    )
    for count, what in (
        (len(pairs) - len(valid), "left out {} pairs that are not valid UTF-8 or have a NUL"),
        (len(normal) - len(kept), "left out {} pairs that are blank on one side"),
        (changed, f"normalised {{}} pairs: --normalization {config.normalization}"),
    ):
        if count:
            tell(f"{names}: {what.format(count)}.")
    if not kept:
        raise ValueError(f"{names}: no sentence pair found.")
    return kept


def _read_side(path: Path, config: DataConfig) -> list[str | None]:
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
            if config.invalid_lines == "error":
                raise ValueError(f"{error} --invalid-lines skip leaves such pairs out.") from error
            texts.append(None)
    return texts


def _aligned(
    paths: list[Path], source: list[str | None], target: list[str | None]
) -> list[tuple[str, str] | None]:
    if len(source) != len(target):
        raise ValueError(
            f"{paths[0]} has {len(source)} lines and {paths[1]} {len(target)}; "
            "line i of one must be the translation of line i of the other."
        )
    return [None if s is None or t is None else (s, t) for s, t in zip(source, target, strict=True)]


def _split_tsv(
    path: Path, lines: list[str | None], config: DataConfig, tell: Tell
) -> list[tuple[str, str] | None]:
    columns = find_columns(path, config.columns, lines)
    pairs = [
        None if line is None else split_line(line, columns, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
    ][columns.header :]
    describe_columns(path, columns, lines, tell)
    return pairs


def _normalized(pair: tuple[str, str], config: DataConfig) -> tuple[str, str]:
    source = normalize_source(pair[0], config.normalization)
    return source.strip(), normalize_target(pair[1], config.normalization).strip()


def _hold_out(pairs: Pairs, splits: int, count: int, tell: Tell) -> tuple[Pairs, list[Pairs]]:
    """Takes `splits` lists of `count` pairs, whose sources all differ, out of `pairs`.

    Other pairs with one of these sources are in none of the lists, nor in the rest.
    """
    sources = sorted({source for source, _ in pairs})
    most = len(sources) // 10
    if most == 0:
        raise ValueError(
            f"{len(pairs)} training pairs are too few to hold some out; "
            "name files with --valid and --test."
        )
    if most < count:
        tell(f"--held-out {count}: {most} pairs, a tenth of all sources, are held out for a split.")
    count = min(count, most)
    random.Random(HELD_OUT_SEED).shuffle(sources)
    targets: dict[str, list[str]] = {source: [] for source in sources[: count * splits]}
    for source, target in pairs:
        if source in targets:
            targets[source].append(target)
    taken = {source: i // count for i, source in enumerate(targets)}
    if copies := sum(map(len, targets.values())) - len(targets):
        tell(f"Left {copies} pairs out of training that have the source of a pair held out.")
    held_out: list[Pairs] = [[] for _ in range(splits)]
    for source in dict.fromkeys(source for source, _ in pairs if source in taken):
        held_out[taken[source]].append((source, _chosen(source, targets[source])))
    return [pair for pair in pairs if pair[0] not in taken], held_out


def _chosen(source: str, targets: list[str]) -> str:
    """One of the translations of a source, whatever their order."""
    return random.Random(f"{HELD_OUT_SEED} {source}").choice(sorted(targets))


def _builtin_corpus(config: DataConfig) -> Corpus:
    held_out = min(config.held_out, max(config.builtin_pairs // 10, 1))
    return Corpus(
        builtin.pairs("train", config.builtin_pairs),
        builtin.pairs("valid", min(500, held_out)),
        builtin.pairs("test", held_out),
    )
