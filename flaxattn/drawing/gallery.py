"""Every pattern of masks and scores and some compositions: pictures are drawn from their code."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import flaxattn.masks
import flaxattn.scores
from flaxattn.masks import Mask
from flaxattn.scores import Score

__all__ = ["GALLERY", "MASKS", "SCORES", "Entry", "evaluate", "save"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A mask or score as one would write it, with the lengths it is drawn at."""

    code: str
    """An expression of flaxattn's masks and scores, `np` and `jnp`."""
    words: str
    """What it is for."""
    q_len: int = 24
    kv_len: int = 24
    block: int = 4
    """Queries and keys of a block of the plan."""
    under: str = "full()"
    """The mask that hides some of a score."""

    @property
    def value(self) -> Mask | Score:
        """What the code gives.

        Raises:
          ValueError if it gives neither mask nor score, or nothing at all.
        """
        return evaluate(self.code)

    @property
    def mask(self) -> Mask:
        """The mask, or that which hides some of the score."""
        value = self.value
        value = evaluate(self.under) if isinstance(value, Score) else value
        assert isinstance(value, Mask)
        return value


def evaluate(code: str) -> Mask | Score:
    """The mask or score that an expression gives: it is run as Python.

    Raises:
      ValueError if the expression cannot be understood, or gives neither.

    >>> evaluate("causal() & sliding_window(3)"), evaluate("alibi(0.5) >> softcap(10.0)")
    ((causal() & sliding_window(left=3, right=3)), (alibi(slopes=0.5) >> softcap(cap=10.0)))
    """
    rooms = vars(flaxattn.masks) | vars(flaxattn.scores)
    names: dict[str, Any] = {n: v for n, v in rooms.items() if not n.startswith("_")}
    try:
        value = eval(code, names | {"np": np, "jnp": jnp})  # the person's own words, or those below
    except Exception as error:
        raise ValueError(
            f"{code!r} gives no mask or score: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Mask | Score):
        raise ValueError(f"{code!r} gives a {type(value).__name__}; expected a mask or a score.")
    return value


_DOCUMENTS = "np.repeat([1, 2, 3, 0], [9, 6, 5, 4])"

MASKS = {
    "full": Entry("full()", "everything is seen: an encoder without padding"),
    "causal": Entry("causal()", "itself and what is before: a decoder"),
    "sliding_window": Entry("sliding_window(4)", "the neighbours on both sides"),
    "prefix": Entry("prefix(9)", "the first keys alone"),
    "chunked": Entry("chunked(8)", "the own chunk alone"),
    "dilated": Entry("dilated(3)", "every third key, counted from the own place"),
    "lengths": Entry("lengths(q_lengths=20, kv_lengths=14)", "what padding leaves"),
    "valid": Entry("valid(np.arange(24) % 9 < 6)", "keys chosen one by one"),
    "same_segment": Entry(f"same_segment({_DOCUMENTS})", "packed documents; 0 is padding"),
    "global_tokens": Entry("global_tokens(3)", "a few that see all and are seen by all"),
    "from_dense": Entry("from_dense(np.eye(24, dtype=bool)[::-1])", "any array of booleans"),
    "where": Entry(
        "where(lambda q, kv: (q - kv) & (q - kv - 1) == 0) & causal()",
        "a rule of one's own: 0, 1, 2, 4, 8 ... steps back (LogSparse, arXiv:1907.00235)",
    ),
    "causal_window": Entry("causal() & sliding_window(6)", "the last few (Mistral, Gemma)"),
    "packed_causal": Entry(f"causal() & same_segment({_DOCUMENTS})", "packed decoder rows"),
    "prefix_lm": Entry("causal() | prefix(7)", "a prefix read both ways (T5, arXiv:1910.10683)"),
    "block_causal": Entry("causal() | chunked(6)", "frames: each sees itself and those before"),
    "strided": Entry(
        "causal() & (sliding_window(5) | dilated(6))",
        "the last few and every sixth (Sparse Transformer, arXiv:1904.10509)",
    ),
    "longformer": Entry(
        "sliding_window(3) | global_tokens(2)", "neighbours and a few for all, arXiv:2004.05150"
    ),
    "attention_sinks": Entry(
        "causal() & (sliding_window(6) | prefix(2))",
        "the last few and the very first (StreamingLLM, arXiv:2309.17453)",
    ),
    "cross": Entry(
        "same_segment(np.repeat([1, 2, 3, 0], [7, 6, 5, 6]), np.repeat([1, 2, 3], [8, 4, 6]))",
        "packed translations see their own sources",
        kv_len=18,
    ),
    "decoding": Entry("causal().shift(q_start=16)", "four tokens more, after 16", q_len=4),
    "positions": Entry(
        "causal().at(*[np.r_[0:4, 20:24, 4:8, 16:20, 8:16]] * 2)",
        "a row in zigzag order, shared out evenly among devices",
    ),
    "heads": Entry(
        "causal() & sliding_window(np.array([[1, 5, 12]]))", "a window of its own for each head"
    ),
    "not": Entry("~sliding_window(4)", "the opposite of a mask"),
}

SCORES = {
    "softcap": Entry("softcap(5.0)", "logits within limits (Gemma 2, arXiv:2408.00118)"),
    "temperature": Entry(
        "temperature(np.array([0.5, 1.0, 3.0]))", "sharper and more even weights, head by head"
    ),
    "alibi": Entry(
        "alibi(alibi_slopes(4))",
        "the farther, the less (ALiBi, arXiv:2108.12409)",
        under="causal()",
    ),
    "relative_positions": Entry(
        "relative_positions(np.sin(np.arange(-8, 9) / 3))",
        "a learned number for each distance, up to the last one (arXiv:1803.02155)",
    ),
    "relative_bias": Entry(
        "relative_bias(-(np.arange(16.0) % 8), num_buckets=16, max_distance=24)",
        "a learned number for each bucket of distances (T5, arXiv:1910.10683)",
    ),
    "score": Entry(
        "score(lambda logit, q, k: logit - jnp.log1p(jnp.abs(q - k)))",
        "a rule of one's own: logarithmic in the distance (KERPLE, arXiv:2205.09921)",
        under="causal()",
    ),
    "capped_alibi": Entry(
        "alibi(0.5) >> softcap(5.0)", "one after the other, the first one first", under="causal()"
    ),
    "sandwich": Entry(
        "relative_positions(8 * np.cos(np.arange(-23, 24)[:, None] / 1e4 ** (np.arange(64) / 64))"
        ".mean(1))",
        "products of sinusoidal positions (Sandwich, arXiv:2212.10356)",
        under="causal()",
    ),
    "alibi_decoding": Entry(
        "alibi(0.25).shift(q_start=16)",
        "four tokens more, after 16",
        q_len=4,
        under="causal().shift(q_start=16)",
    ),
}

GALLERY = MASKS | SCORES


def save(folder: Path, entries: Mapping[str, Entry] = GALLERY) -> list[Path]:
    """Writes a PNG for each entry, and `gallery.png` of all together; needs matplotlib.

    Args:
      folder: made if it is not there.

    Returns:
      The files. The names of entries that are no names of files are replaced by numbers.
    """
    from flaxattn.drawing.picture import show_all, show_entry  # only pictures need matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (name, entry) in enumerate(entries.items(), 1):
        file = folder / f"{name if name.isidentifier() else number}.png"
        show_entry(entry).savefig(file, dpi=110)
        files.append(file)
    if len(entries) > 1:
        files.append(folder / "gallery.png")
        show_all(entries).savefig(files[-1], dpi=110)
    return files
