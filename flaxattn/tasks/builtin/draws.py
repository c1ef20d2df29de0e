"""Drawing: dice that know how likely their throws were, and splits that differ in combinations.

A combination is two words that occur together, such as a name and the phrase that tells its kind.
Its SHA-256 digest sends 6% of all combinations to "valid" and another 6% to "test". A training
text holds no combination of either; a text of "valid" is decided by at least one of "valid" and
holds none of "test", and the other way round. So every single word is trained on, and no text is
in two splits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import islice
from typing import Literal, NamedTuple, TypeVar, get_args

from flaxattn.translation.text.builtin import grammar

__all__ = ["CountingDice", "Drawn", "Split", "check_request", "examples"]

Split = Literal["train", "valid", "test"]
Choice = TypeVar("Choice")
Example = TypeVar("Example")
Combination = tuple[str, str]

LARGEST_COUNT = 1_000_000
TRIES = 1_000  # for each text, on average


class CountingDice(grammar.Dice):
    """Dice that add up the natural logarithm of the probability of all they gave."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.log_prob = 0.0

    def chance(self, probability: float) -> bool:
        found = super().chance(probability)
        self.log_prob += math.log(probability if found else 1 - probability)
        return found

    def pick(self, options: Sequence[Choice]) -> Choice:
        self.log_prob -= math.log(len(options))
        return super().pick(options)


class Drawn(NamedTuple):
    """A text, whatever it is made of, and its combinations."""

    example: tuple
    decisive: Iterable[Combination]
    """At least one of these is held out in a split that is not trained on."""
    others: Iterable[Combination] = ()


def check_request(split: str, count: int) -> None:
    """Raises ValueError if there is no such split, or if there are too many or too few texts."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, not {split!r}.")
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"count must be between 0 and {LARGEST_COUNT}, not {count}.")


def examples(
    split: Split, count: int, seed: int, draw: Callable[[grammar.Dice], Drawn]
) -> list[tuple]:
    """`count` distinct texts of a split: more of them begin as fewer do."""
    check_request(split, count)
    dice = grammar.Dice(f"{draw.__module__} {split} {seed}")
    found = list(islice(_distinct(split, (draw(dice) for _ in range(TRIES * count))), count))
    if len(found) < count:
        raise ValueError(f"count is too large: found only {len(found)} of {count} texts.")
    return found


def _distinct(split: Split, drawn: Iterable[Drawn]) -> Iterator[tuple]:
    seen = set()
    for example, decisive, others in drawn:
        deciding = {_split_of(*each) for each in decisive}
        found = deciding | {_split_of(*each) for each in others}
        if split in deciding and found <= {split, "train"} and example not in seen:
            seen.add(example)
            yield example


@cache
def _split_of(first: str, second: str) -> str:
    """The split in which a combination of two words occurs."""
    share = int.from_bytes(sha256(f"{first}-{second}".encode()).digest()[:4], "big") % 100
    return "valid" if share < 6 else "test" if share < 12 else "train"
