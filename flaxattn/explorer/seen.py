"""What is shown: attentions and the sentence they belong to, as strings, numbers and arrays."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Attention", "Hypothesis", "Sentence", "Written"]

ROUNDING = 1e-2  # weights of low precision may exceed one by so much


@dataclasses.dataclass(frozen=True)
class Attention:
    """The weights of one attention on one example, all heads.

    Raises:
      ValueError or TypeError naming the argument if shapes do not fit or a weight is not between
      0 and 1.

    >>> seen = Attention("attention", ["a", "b"], ["a", "b"], np.ones((4, 2, 2)) / 2)
    >>> seen.weights.shape, seen.mask
    ((4, 2, 2), None)
    """

    name: str
    """Where it comes from, e.g. the path of a module."""
    q_tokens: Sequence[str]
    """T labels of the queries, the rows."""
    kv_tokens: Sequence[str]
    """S labels of the keys, the columns."""
    weights: Any
    """float `[N, T, S]`; kept as float32."""
    mask: Any = None
    """bool `[T, S]` or `[N, T, S]`, True = may be seen; None: everything."""
    kind: str = "Attention"
    """Attentions of one kind are shown together, one layer below the other."""
    layer: int = 0
    """Which of them it is."""
    q_writes: Sequence[str] | None = None
    """T tokens that are written where those of `q_tokens` are read, as a decoder does."""

    def __post_init__(self) -> None:
        # The dataclass is frozen, so that what was checked stays as it was.
        object.__setattr__(self, "weights", np.asarray(self.weights).astype(np.float32))
        self._check_weights()
        if self.mask is not None:
            object.__setattr__(self, "mask", np.asarray(self.mask))
            self._check_mask()
        if self.q_writes is not None and len(self.q_writes) != len(self.q_tokens):
            raise ValueError(
                f"{self.name}: {len(self.q_writes)} q_writes for {len(self.q_tokens)} q_tokens."
            )

    def _check_weights(self) -> None:
        weights, shape = self.weights, (len(self.q_tokens), len(self.kv_tokens))
        if weights.ndim != 3 or weights.shape[1:] != shape or not weights.size:
            raise ValueError(
                f"{self.name}: weights have shape {weights.shape}; expected [N, T, S] with T = "
                f"{shape[0]} q_tokens and S = {shape[1]} kv_tokens, none of them 0."
            )
        if not ((weights >= -ROUNDING) & (weights <= 1 + ROUNDING)).all():
            raise ValueError(
                f"{self.name}: weights go from {weights.min()} to {weights.max()}; expected 0 to "
                "1, as they are after the softmax."
            )

    def _check_mask(self) -> None:
        mask, shapes = self.mask, (self.weights.shape[1:], self.weights.shape)
        if mask.dtype != np.bool_:
            raise TypeError(
                f"{self.name}: mask has dtype {mask.dtype}; expected bool, True where attention "
                "is allowed."
            )
        if mask.shape not in shapes:
            raise ValueError(
                f"{self.name}: mask has shape {mask.shape}; expected {shapes[0]} or {shapes[1]}. "
                "Of a batch, take one example."
            )

    def hidden(self, head: int) -> np.ndarray:
        """What the mask hides from a head: bool `[T, S]`."""
        if self.mask is None:
            return np.zeros(self.weights.shape[1:], bool)
        return ~(self.mask if self.mask.ndim == 2 else self.mask[head])


@dataclasses.dataclass(frozen=True)
class Written:
    """A token that was written, and its alternatives."""

    token: str
    probability: float
    others: Sequence[tuple[str, float]] = ()
    """The most likely other tokens with their probabilities, best first."""

    def __post_init__(self) -> None:
        for token, probability in ((self.token, self.probability), *self.others):
            if not 0 <= probability <= 1 + ROUNDING:
                raise ValueError(f"probability of {token!r} is {probability}; expected 0 to 1.")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A whole sentence that was found, and its score."""

    text: str
    score: float
    log_prob: float
    """In nats."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and math.isfinite(self.log_prob)):
            raise ValueError(
                f"hypothesis {self.text!r} has score {self.score} and log_prob {self.log_prob}; "
                "expected finite numbers. Leave out what was not found."
            )


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence and its attentions; the other fields are optional."""

    text: str
    attentions: Sequence[Attention]
    translation: str = ""
    written: Sequence[Written] = ()
    """The tokens of the translation, one after another."""
    hypotheses: Sequence[Hypothesis] = ()
    """The translation and what else was found, best first."""

    def __post_init__(self) -> None:
        if not self.attentions:
            raise ValueError(f"attentions of {self.text!r}: expected at least one.")
        places = [(a.kind, a.layer) for a in self.attentions]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(
                    f"attentions of {self.text!r}: two are of kind {place[0]!r} and layer "
                    f"{place[1]}; give one of them another kind or layer."
                )
