"""TSV files of labels and texts."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxattn.text.lines import on_one_line
from flaxattn.text.pairs import Pair
from flaxattn.text.reading import texts_of
from flaxattn.training.screen import Tell
from flaxattn.translation.text.columns import Columns, find_columns

__all__ = ["labelled_texts"]

SHOWN = 10  # labels
FEW = 20  # texts that are too few to tell by them whether labels are labels


def labelled_texts(
    path: Path, tell: Tell, columns: Sequence[str] = (), *, skip_invalid: bool = False
) -> Iterator[Pair]:
    """The (text, label) pairs of a file with a label and a text in each line; neither is blank.

    Args:
      tell: is given, after the last pair, the labels and what was left out.
      columns: of the label and of the text: two numbers from 1, or two names that stand in the
        first line; none: the first two.
      skip_invalid: whether lines that are no text are left out.

    Raises:
      FileNotFoundError; ValueError if a line is no text or has too few columns, there are no such
      columns or no pair, naming file and line.
    """
    pieces = texts_of(path, skip_invalid=skip_invalid)
    first = next(pieces, [])
    places = find_columns(path, columns, first)
    lines = enumerate(itertools.chain(first, itertools.chain.from_iterable(pieces)), 1)
    labels, left_out = collections.Counter[str](), collections.Counter[str]()
    for number, line in itertools.islice(lines, int(places.header), None):
        if line is None:
            left_out["are not valid UTF-8 or have a NUL"] += 1
            continue
        label, text = _split(line, places, f"{path}, line {number}")
        if label and text:
            labels[label] += 1
            yield text, label
        else:
            left_out["lack a label or a text"] += 1
    for what, count in left_out.items():
        tell(f"{path}: left out {count} lines that {what}.")
    _describe(path, labels, tell)


def _split(line: str, places: Columns, where: str) -> tuple[str, str]:
    """Label and text, both blank in a blank line."""
    if not line.strip():
        return "", ""
    fields, needed = line.split("\t"), max(places[:2]) + 1
    if len(fields) < needed:
        found = "no tab" if len(fields) == 1 else f"{len(fields)} columns"
        expected = "label TAB text" if needed == 2 else f"{needed} columns with tabs between"
        raise ValueError(f"{where}: expected {expected}, found {found}.")
    return on_one_line(fields[places.source]), on_one_line(fields[places.target])


def _describe(path: Path, labels: collections.Counter[str], tell: Tell) -> None:
    """Tells the labels; raises ValueError if there are none."""
    if not labels:
        raise ValueError(f"{path}: no label with a text found.")
    shown = ", ".join(f"{label} {count}" for label, count in labels.most_common(SHOWN))
    more = ", …" if len(labels) > SHOWN else ""
    tell(f"{path}: {labels.total()} texts with {len(labels)} labels: {shown}{more}.")
    if labels.total() >= FEW and len(labels) > labels.total() / 2:
        tell(
            f"{path}: most labels occur once. --columns says which two columns are label and text, "
            "for example --columns 2 1."
        )
    elif labels.total() >= FEW and labels[next(iter(labels))] == 1:
        tell(
            f"{path}: the first label, {next(iter(labels))!r}, occurs once; if the first line has "
            "the names of columns, give two of them with --columns."
        )
