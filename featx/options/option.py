"""What an option is: a dataclass field that knows its range, its parser and its help."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from featx.errors import UsageError
from featx.options.without_effect.rules import refuse_without_effect

_PLAIN = (type(None), str, int, float)
_TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
}


def option(
    default: Any,
    help: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[Any], Any] | None = None,
    metavar: str | None = None,
    recorded: bool = True,
) -> Any:
    """A dataclass field that knows how to be a command line option.

    `recorded=False` marks options that can never change a result (workers, tolerance for bad files): they
    are left out of the stored plan, so that changing them never blocks a resume.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "choices": choices,
        "low": low,
        "high": high,
        "parse": parse,
        "metavar": metavar,
        "recorded": recorded,
    }
    return field(default=default, metadata=metadata)


def flag_of(spec: Field[Any]) -> str:
    """The long option of a config field: `batch_size` is `--batch-size`."""
    return "--" + spec.name.replace("_", "-")


@dataclass(frozen=True)
class Config:
    """Base of the commands' options: checks every field against its own range and choices."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.metadata.get("parse") is not None and value != spec.default:
                value = spec.metadata["parse"](value)
            value = _of_its_type(spec, value)
            object.__setattr__(self, spec.name, value)
            _check(spec, value)
        refuse_without_effect(self)

    def recorded(self) -> dict[str, Any]:
        """The options that can change a result, as they were given."""
        return {s.name: getattr(self, s.name) for s in fields(self) if s.metadata.get("recorded", True)}


def _of_its_type(spec: Field[Any], value: Any) -> Any:
    """The value as the field has it: paths and lists of names become text, NumPy's numbers Python's.

    Raises:
        UsageError: it is of another type.
    """
    kind = str(spec.type).split(" |")[0]
    if kind not in _TYPES:
        return value
    wanted, words = _TYPES[kind]
    if wanted is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if wanted is str and isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    is_right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    if value is not None and not is_right:
        raise UsageError(f"{flag_of(spec)} is {value!r}; it must be {words}")
    return value if isinstance(value, _PLAIN) else int(value) if wanted is Integral else float(value)


def _check(spec: Field[Any], value: Any) -> None:
    choices, low, high = (spec.metadata.get(key) for key in ("choices", "low", "high"))
    if value is None:
        if spec.default is None:
            return
        raise UsageError(f"{flag_of(spec)} needs a value")
    if choices and value not in choices:
        raise UsageError(f"{flag_of(spec)} is {value!r}; choose from {', '.join(choices)}")
    if (low is not None and value < low) or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        raise UsageError(f"{flag_of(spec)} is {value}; it must be at least {low:g}{upper}")


def command_line(verb: str, source: str, config: Config) -> str:
    """The command a config stands for, without the options that cannot change a result.

    >>> from featx.options.extraction import ExtractConfig
    >>> command_line("extract", "SOURCE", ExtractConfig(backbone="vgg16", squash=True))
    'featx extract SOURCE --backbone vgg16 --squash'
    """
    words = ["featx", verb, source]
    given = config.recorded()
    for spec in fields(config):
        if spec.name in given and given[spec.name] != spec.default:
            value = given[spec.name]
            words += [flag_of(spec)] if value is True else [flag_of(spec), str(value)]
    return shlex.join(words)


def known_command(command: str, kind: type[Config]) -> str:
    """A command that a file says, taken apart and put together again from options that `kind` declares.

    What stands in a file is somebody else's text: an option with a wrong value, or one that there is not, ends it.

    >>> from featx.options.extraction import ExtractConfig
    >>> known_command("featx extract SOURCE --backbone vgg16 --squash -o NEW.h5; rm -r ~", ExtractConfig)
    'featx extract SOURCE --backbone vgg16 --squash'
    """
    known = {flag_of(spec): spec for spec in fields(kind)}
    given: dict[str, Any] = {}
    try:
        words = iter(shlex.split(command)[3:])
    except ValueError:
        words = iter(())
    for word in words:
        spec = known.get(word)
        if spec is None:
            break
        value: Any = True if spec.default is False else next(words, None)
        try:
            if str(spec.type).startswith(("int", "float")):
                value = (int if str(spec.type).startswith("int") else float)(str(value))
            kind(**given, **{spec.name: value})
        except (UsageError, ValueError, TypeError):
            break
        given[spec.name] = value
    return command_line("extract", "SOURCE", kind(**given))
