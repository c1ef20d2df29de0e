"""Words of a command line to dataclasses: help that tells ranges, errors that name options."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from flaxattn.ranges import FieldError, Range, ranges
from flaxattn.training.renamed import RENAMED

__all__ = ["given", "parsed"]


def parsed(what: Any, words: Sequence[str], **options: Any) -> Any:
    """What the words say, where each field of a dataclass and of those in it is an option.

    Args:
      what: the dataclass; or, by the name of each subcommand, what makes its dataclass.
      options: `prog`, `description` and `default`, as `tyro.cli` has them.

    Raises:
      ValueError that names the option at fault; SystemExit for help, and for words that are no
      values of their options.
    """
    _check_renamed(what, words)
    cli = tyro.extras.subcommand_cli_from_dict if isinstance(what, dict) else tyro.cli
    try:
        with _registry():
            return cli(what, args=words, config=(tyro.conf.OmitArgPrefixes,), **options)
    except _RefusedError as error:
        raise ValueError(str(error)) from error.__cause__


def given(words: Sequence[str]) -> frozenset[str]:
    """The names of the fields whose options are among the words.

    >>> sorted(given(["small", "--steps", "7", "--top_p=0.5", "--no-remat"]))
    ['no_remat', 'remat', 'steps', 'top_p']
    """
    options = (word[2:].partition("=")[0] for word in words if word.startswith("--"))
    names = [option.replace("-", "_") for option in options]
    return frozenset(names + [name.removeprefix("no_") for name in names])


def _check_renamed(what: Any, words: Sequence[str]) -> None:
    """Raises ValueError for the name that an option once had."""
    kind = what.get(words[0] if words else None) if isinstance(what, dict) else what
    options = {*_options(kind)}
    for name in sorted(given(words) & RENAMED.keys()):
        if RENAMED[name] in options:
            old, new = (x.replace("_", "-") for x in (name, RENAMED[name]))
            raise ValueError(f"--{old} is called --{new} now.")


def _options(*kinds: Any) -> Iterator[str]:
    """The names of all fields of dataclasses, and of those in them."""
    for kind in kinds:
        if dataclasses.is_dataclass(kind := getattr(kind, "func", kind)):
            yield from (field.name for field in dataclasses.fields(kind))
            hints = typing.get_type_hints(kind)
            yield from _options(*hints.values())


def _registry() -> ConstructorRegistry:
    """The rule by which dataclasses become options, besides those of tyro itself."""
    registry, inside = ConstructorRegistry(), []

    @registry.struct_rule
    def with_ranges(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type in inside or not dataclasses.is_dataclass(info.type):
            return None
        inside.append(info.type)
        try:
            spec: Any = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside.remove(info.type)
        if not isinstance(spec, StructConstructorSpec):
            return spec
        fields = tuple(_shown(info.type, field) for field in spec.fields)
        return dataclasses.replace(spec, instantiate=_refusing(spec.instantiate), fields=fields)

    return registry


def _refusing(instantiate: Callable[..., Any]) -> Callable[..., Any]:
    def instantiated(*values: Any, **fields: Any) -> Any:
        try:
            return instantiate(*values, **fields)
        except FieldError as error:
            raise _RefusedError(error.of_option()) from error

    return instantiated


class _RefusedError(Exception):
    """What a FieldError says, past tyro, which tells of a ValueError in its own words."""


def _shown(kind: Any, field: StructFieldSpec) -> StructFieldSpec:
    """The field with its range in its help, or not shown at all if nobody is to give it."""
    told = next(x for x in dataclasses.fields(kind) if x.name == field.name)
    within = ranges(kind).get(field.name)
    if not told.metadata.get("option", True):
        hint: Any = Annotated[field.type, tyro.conf.Fixed, tyro.conf.Suppress]
    elif within is not None:
        hint = Annotated[field.type, tyro.conf.arg(help_behavior_hint=_hint(within))]
    else:
        return field
    return dataclasses.replace(field, type=hint)


def _hint(within: Range) -> Any:
    return lambda default: f"({within}; default: {default})"
