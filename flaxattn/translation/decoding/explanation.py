"""The file that `flaxattn translate --explain` writes: a page, or a figure of one text."""

import io
from collections.abc import Sequence
from pathlib import Path

from flaxattn.explorer import Sentence, figure, page
from flaxattn.training.storage.files import write_whole
from flaxattn.translation.decoding.explaining import MOST_TEXTS

__all__ = ["check_target", "write"]

MOST = {".html": MOST_TEXTS, ".png": 1}  # texts in one file, by its ending
DPI = 150


def check_target(path: Path, texts: int) -> None:
    """Raises ValueError or FileNotFoundError unless so many texts can be explained in this file."""
    most = MOST.get(path.suffix.lower())
    if most is None:
        raise ValueError(
            f"--explain: {path} ends in {path.suffix!r}; expected .html for a page, or .png for a "
            "figure of one text."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--explain: {path}: there is no folder {path.parent}.")
    if texts > most:
        raise ValueError(
            f"--explain: {texts} texts; expected at most {most} for a file that ends in "
            f"{path.suffix}. Give fewer."
        )


def write(path: Path, sentences: Sequence[Sentence]) -> int:
    """Writes the file, whole or not at all; returns how many bytes it has.

    Raises:
      ValueError if there is nothing to show.
    """
    if not sentences:
        raise ValueError(f"--explain: {path} is not written, since no text can be explained.")
    if path.suffix.lower() == ".html":
        content = page(sentences).encode()
    else:
        (sentence,) = sentences
        picture = io.BytesIO()
        drawn = figure(sentence.attentions, title=f"{sentence.text}\n{sentence.translation}")
        drawn.savefig(picture, format="png", dpi=DPI)
        content = picture.getvalue()
    write_whole(path, content)
    return len(content)
