"""Sentence pairs: from aligned files, from TSV files, or from the built-in generator."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxattn.text.normalization import normalize_sources, normalize_targets
from flaxattn.text.opening import check_kind
from flaxattn.text.pairs import Pair, StoredPairs
from flaxattn.text.reading import Texts, texts_of, together
from flaxattn.text.splits import Corpus, completed
from flaxattn.training.screen import Tell
from flaxattn.translation.config import DataConfig, data_path
from flaxattn.translation.naming import corpora, others
from flaxattn.translation.text import builtin
from flaxattn.translation.text.columns import Seen, find_columns, split_line

__all__ = ["load_corpus", "load_others", "read_pairs"]

NAME_FILES = "Name your files with --train, --valid and --test, and their folder with --data-dir."


@dataclasses.dataclass
class Counts:
    """Of the pairs of two files, or of one."""

    kept: int = 0
    invalid: int = 0
    blank: int = 0
    changed: int = 0


def load_corpus(config: DataConfig, tell: Tell, folder: Path | None = None) -> Corpus:
    """The pairs that `config` names, normalised as it says.

    Args:
      tell: is given what a person should know of them, line by line.
      folder: where those to train lie if they do not fit memory, as in `Records`.

    Raises:
      FileNotFoundError or ValueError naming the file and line; SaveError.
    """
    _check_there(config)
    if not config.train:
        return _builtin_corpus(config, folder)
    valid, test = (
        list(read_pairs([data_path(config, name) for name in names], config, tell)) if names else []
        for names in (config.valid, config.test)
    )
    parts = (_part(files, config, tell) for _, files in corpora(config.train))
    return completed(Corpus(StoredPairs(parts, folder), valid, test), config.held_out, tell)


def load_others(config: DataConfig, tell: Tell) -> dict[str, list[Pair]]:
    """The pairs of each corpus of `more_valid`, by its name; all else is as of `load_corpus`."""
    return {
        name: list(read_pairs([data_path(config, file) for file in files], config, tell))
        for name, files in others(config.more_valid).items()
    }


def _check_there(config: DataConfig) -> None:
    """Raises FileNotFoundError or ValueError that names the first file that cannot be read."""
    train = (name for _, part in corpora(config.train) for files in part for name in files)
    for name in (*train, *config.valid, *config.more_valid, *config.test):
        try:
            check_kind(data_path(config, name))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {NAME_FILES}") from None


def _part(files: Sequence[Sequence[str]], config: DataConfig, tell: Tell) -> Iterator[Pair]:
    paths = ([data_path(config, name) for name in names] for names in files)
    return itertools.chain.from_iterable(read_pairs(names, config, tell) for names in paths)


def read_pairs(paths: Sequence[Path], config: DataConfig, tell: Tell) -> Iterator[Pair]:
    """The pairs of two aligned files or of one TSV file, without those blank on either side.

    Args:
      config: says what to do with lines that are no text, with columns, and how to normalise.
      tell: as in `load_corpus`; what is told is told after the last pair.

    Raises:
      ValueError if the files have different numbers of lines, a TSV line has too few columns, a
      line is invalid, or no pair is left; FileNotFoundError.
    """
    read = _split_tsv(paths[0], config, tell) if len(paths) == 1 else _aligned(paths, config)
    counts = Counts()
    for sources, targets in read:
        yield from _kept(sources, targets, config, counts)
    names = " and ".join(str(path) for path in paths)
    for count, what in (
        (counts.invalid, "left out {} pairs that are not valid UTF-8 or have a NUL"),
        (counts.blank, "left out {} pairs that are blank on one side"),
        (counts.changed, f"normalised {{}} pairs: --normalization {config.normalization}"),
    ):
        if count:
            tell(f"{names}: {what.format(count)}.")
    if not counts.kept:
        raise ValueError(f"{names}: no sentence pair found.")


def _aligned(paths: Sequence[Path], config: DataConfig) -> Iterator[list[Texts]]:
    counts = [0, 0]
    for sides in together([_texts(path, config) for path in paths]):
        counts = [count + len(texts) for count, texts in zip(counts, sides, strict=True)]
        if len(sides[0]) == len(sides[1]):
            yield sides
    if counts[0] != counts[1]:
        raise ValueError(
            f"{paths[0]} has {counts[0]} lines and {paths[1]} {counts[1]}; "
            "line i of one must be the translation of line i of the other."
        )


def _split_tsv(path: Path, config: DataConfig, tell: Tell) -> Iterator[list[Texts]]:
    pieces, number, seen = _texts(path, config), 1, Seen()
    first = next(pieces, [])
    columns = find_columns(path, config.columns, first)
    for lines in itertools.chain([first], pieces):
        fields = [
            (None, None) if line is None else split_line(line, columns, f"{path}, line {at}")
            for at, line in enumerate(lines, number)
        ]
        skipped = columns.header and number == 1
        number += len(lines)
        seen.look(lines[skipped:])
        yield [[pair[side] for pair in fields[skipped:]] for side in (0, 1)]
    seen.describe(path, columns, tell)


def _texts(path: Path, config: DataConfig) -> Iterator[Texts]:
    return texts_of(path, skip_invalid=config.invalid_lines == "skip")


def _kept(sources: Texts, targets: Texts, config: DataConfig, counts: Counts) -> list[Pair]:
    """The pairs of these lines that are text, normalised and not blank."""
    lines = zip(sources, targets, strict=True)
    valid = [(s, t) for s, t in lines if s is not None and t is not None]
    counts.invalid += len(sources) - len(valid)
    if not valid:
        return []
    given = [[pair[side] for pair in valid] for side in (0, 1)]
    normal = [
        normalize_sources(given[0], config.normalization),
        normalize_targets(given[1], config.normalization),
    ]
    stripped = [[text.strip() for text in texts] for texts in normal]
    if normal != given:
        before = zip(*[[text.strip() for text in texts] for texts in given], strict=True)
        after = zip(*stripped, strict=True)
        counts.changed += sum(a != b for a, b in zip(before, after, strict=True))
    kept = [(s, t) for s, t in zip(*stripped, strict=True) if s and t]
    counts.kept += len(kept)
    counts.blank += len(valid) - len(kept)
    return kept


def _builtin_corpus(config: DataConfig, folder: Path | None) -> Corpus:
    held_out = min(config.held_out, max(config.builtin_pairs // 10, 1))
    return Corpus(
        StoredPairs([builtin.pairs("train", config.builtin_pairs)], folder),
        builtin.pairs("valid", min(500, held_out)),
        builtin.pairs("test", held_out),
    )
