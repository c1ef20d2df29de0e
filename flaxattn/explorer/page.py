"""One web page that stands alone: HTML, style, script and data in one string, no network."""

import base64
import html
import importlib.resources
import json
import string
from collections.abc import Sequence

import numpy as np

from flaxattn.explorer.colours import scale
from flaxattn.explorer.seen import Attention, Sentence
from flaxattn.pages import style_of

__all__ = ["FULL", "page"]

SCRIPTS = ("weights.js", "map.js", "page.js")  # one after another, in one module
FULL = 65535  # a weight of one: weights are kept as shares of it, exact to 8e-6


def page(sentences: Sequence[Sentence], *, title: str = "Attention explorer") -> str:
    """The HTML of a page on which every head of every attention can be looked at.

    Raises:
      ValueError if there is no sentence.

    >>> seen = Attention("attention", ["a", "b"], ["a", "b"], np.ones((4, 2, 2)) / 2)
    >>> page([Sentence("a b", [seen])])[:15]
    '<!doctype html>'
    """
    if not sentences:
        raise ValueError("sentences: expected at least one.")
    data = {
        "full": FULL,
        "scales": {name: _base64(scale(dark=name == "dark")) for name in ("light", "dark")},
        "sentences": [_sentence(sentence) for sentence in sentences],
    }
    return string.Template(_file("page.html")).substitute(
        title=html.escape(title),
        style=style_of(__package__, "page.css"),
        script="\n".join(map(_file, SCRIPTS)),
        data=_json(data),
    )


def _file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(data: object) -> str:
    """JSON in which nothing ends the script element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _sentence(sentence: Sentence) -> dict[str, object]:
    kinds: dict[str, list[Attention]] = {}
    for attention in sentence.attentions:
        kinds.setdefault(attention.kind, []).append(attention)
    return {
        "text": sentence.text,
        "translation": sentence.translation,
        "kinds": [
            {"name": kind, "layers": [_attention(x) for x in sorted(xs, key=lambda x: x.layer)]}
            for kind, xs in kinds.items()
        ],
        "written": [
            {
                "token": w.token,
                "p": float(w.probability),
                "others": [[token, float(p)] for token, p in w.others],
            }
            for w in sentence.written
        ],
        "hypotheses": [
            {"text": h.text, "score": float(h.score), "logProb": float(h.log_prob)}
            for h in sentence.hypotheses
        ],
    }


def _attention(attention: Attention) -> dict[str, object]:
    """Weights as little-endian uint16 `[N, T, S]`, the mask as bits `[T, S]` or `[N, T, S]`."""
    weights = np.round(np.clip(attention.weights, 0, 1) * FULL).astype("<u2")
    mask = attention.mask
    return {
        "name": attention.name,
        "layer": attention.layer,
        "heads": len(weights),
        "queries": list(attention.q_tokens),
        "keys": list(attention.kv_tokens),
        "writes": None if attention.q_writes is None else list(attention.q_writes),
        "weights": _base64(weights),
        "maskHeads": 0 if mask is None else mask.size // weights[0].size,
        "mask": "" if mask is None else _base64(np.packbits(mask, bitorder="little")),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
