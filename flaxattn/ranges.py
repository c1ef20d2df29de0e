"""The range of a configuration's numbers, declared beside each field; one checker reads them all.

>>> @dataclasses.dataclass(frozen=True)
... class Config:
...     rows: Annotated[int, Range(1, 4096)] = 32
...     order: Literal["sorted", "random"] = "random"
...
...     def __post_init__(self):
...         check_fields(self)
>>> Config(rows=0)
Traceback (most recent call last):
flaxattn.ranges.FieldError: rows is 0; expected 1 to 4,096.
"""

import dataclasses
import functools
import numbers
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast

__all__ = ["FieldError", "Range", "check_fields", "ranges"]

Hint: TypeAlias = object  # what a field is annotated with: Python has no one type for it
SHOWN = 40  # characters of a value in an error


class FieldError(ValueError):
    """A field has a value that it cannot have.

    Args:
      name: of the field.
      problem: what follows the name: what the value is, and what was expected.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def of_option(self) -> str:
        """The message to one who gave the value on the command line.

        >>> FieldError("top_k", "is 0; expected 1 to 9.").of_option()
        '--top-k is 0; expected 1 to 9.'
        """
        return f"--{self.name.replace('_', '-')} {self.problem}"


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both finite: no NaN, no infinity.

    >>> [str(Range(1, 4096)), str(Range(0, 1, below=True)), str(Range(0, 1, above=True))]
    ['1 to 4,096', 'at least 0, less than 1', 'more than 0, at most 1']
    """

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is outside."""
    below: bool = False
    """Whether `most` itself is outside."""

    def __contains__(self, value: float) -> bool:
        lower = self.least < value if self.above else self.least <= value
        return lower and (value < self.most if self.below else value <= self.most)  # not NaN

    def __str__(self) -> str:
        if not (self.above or self.below):
            return f"{_text(self.least)} to {_text(self.most)}"
        lower = f"{'more than' if self.above else 'at least'} {_text(self.least)}"
        return f"{lower}, {'less than' if self.below else 'at most'} {_text(self.most)}"


def check_fields(config: object) -> None:
    """Checks the numbers of a dataclass against their ranges, and its choices against `Literal`.

    Raises:
      FieldError that names the field, its value and what was expected.
    """
    kind: Any = type(config)
    for name, hint in _hints(kind).items():
        value, choices = getattr(config, name), typing.get_args(hint)
        if typing.get_origin(hint) is Literal and value not in choices:
            raise FieldError(name, f"is {value!r}; expected one of {', '.join(choices)}.")
    for name, (of, within, optional) in _numbers(kind).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not (optional and number is None) and not _fits(number, of, within):
                whole = of is int and isinstance(number, float)
                expected = f"a whole number, {within}" if whole else within
                raise FieldError(name, f"is {_shown(number)}; expected {expected}.")


def ranges(config: type) -> dict[str, Range]:
    """By name, the ranges that the fields of a dataclass declare."""
    return {name: within for name, (_, within, _) in _numbers(config).items()}


@functools.cache
def _hints(config: type) -> dict[str, Hint]:
    return typing.get_type_hints(config, include_extras=True)


@functools.cache
def _numbers(config: type) -> dict[str, tuple[type, Range, bool]]:
    """By name, the kind and range of each number, and whether it may be None instead."""
    return {
        name: (kind, within, type(None) in typing.get_args(hint))
        for name, hint in _hints(config).items()
        for kind, within in _declared(hint)
    }


def _declared(hint: Hint) -> Iterator[tuple[type, Range]]:
    """The number that a hint allows: alone, or None, or in a tuple."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield from ((parts[0], part) for part in parts[1:] if isinstance(part, Range))
    elif typing.get_origin(hint) is not Literal:
        for part in parts:
            yield from _declared(part)


def _fits(number: object, kind: type, within: Range) -> bool:
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(number, bool) or not isinstance(number, wanted):
        return False
    return cast(float, number) in within  # any number: NumPy's, too


def _text(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "too long to be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
