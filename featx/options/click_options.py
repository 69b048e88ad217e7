"""Options of the command line, made from the config fields: flags first, then FEATX_* variables, then --config."""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from featx.errors import UsageError
from featx.options.option import Config, flag_of
from featx.options.option_file import read_option_file

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
_VARIABLES = ("FEATX_TRACEBACK", "FEATX_WEIGHTS_MIRROR")  # read elsewhere than by options
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_|$)")  # of Services: ..._PORT_80_TCP and others
_VALUE_TYPES: dict[type, Any] = {int: click.INT, float: click.FLOAT, str: click.STRING}


def output_option(help: str, *, metavar: str = "FILE", required: bool = False) -> Callable[[Command], Command]:
    """-o, where a command's result goes."""
    return click.option("-o", "--output", type=PATH, required=required, help=help, metavar=metavar)


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A click type made of a parsing function of `featx.options`."""

    def __init__(self, spec: Field[Any]) -> None:
        self.name = spec.metadata["metavar"] or spec.name
        self.parse = spec.metadata["parse"]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def options_of(config: type[Config]) -> Callable[[Command], Command]:
    """Give a command one option per field of a config, and call it with `config=` made of them."""

    def decorate(command: Command) -> Command:
        def collect(**arguments: Any) -> Any:
            values = {spec.name: arguments.pop(spec.name) for spec in fields(config)}
            made = config(**values)
            context = click.get_current_context()
            given = [name for name in values if context.get_parameter_source(name) != ParameterSource.DEFAULT]
            object.__setattr__(made, "given", frozenset(given))
            return command(**arguments, config=made)

        collect.__name__, collect.__doc__ = command.__name__, command.__doc__
        collect.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # click's
        decorated: Any = collect
        for spec in reversed(fields(config)):
            decorated = _option(spec, get_type_hints(config)[spec.name])(decorated)
        return decorated  # type: ignore[no-any-return]  # click.option is typed as returning anything

    return decorate


def _option(spec: Field[Any], hint: Any) -> Any:
    metadata = spec.metadata
    several = get_origin(hint) is tuple
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    kind: Any = _VALUE_TYPES.get(hint)
    if metadata["choices"]:
        kind = click.Choice(metadata["choices"])
    elif several:
        kind = click.STRING  # the config looks at all of them together
    elif metadata["parse"]:
        kind = Parsed(spec)
    elif metadata["low"] is not None:
        kind = (click.IntRange if hint is int else click.FloatRange)(metadata["low"], metadata["high"])
    return click.option(
        *metadata["flags"],
        flag_of(spec),
        spec.name,
        default=spec.default,
        type=None if hint is bool else kind,
        is_flag=hint is bool,
        multiple=several,
        metavar=metadata["metavar"] if hint is not bool else None,
        envvar=f"FEATX_{spec.name.upper()}",
        show_default=spec.default is not None and hint is not bool and not several,
        help=metadata["help"],
    )


def _read_config_file(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Take the options in a YAML file as defaults; what is not an option of the command is refused."""
    if path is None:
        return
    options = {p.name: p for p in ctx.command.params if isinstance(p, click.Option) and p.name not in _NOT_IN_FILES}
    try:
        found = read_option_file(path, str(ctx.info_name), {str(name): p.is_flag for name, p in options.items()})
    except UsageError as error:
        raise click.BadParameter(str(error)) from error
    ctx.default_map = {**(ctx.default_map or {}), **found}


_NOT_IN_FILES = ("as_json", "config_file", "help", "output")


def common(command: Command) -> Command:
    """--json and --config, which every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)
    return click.option(
        "--config",
        "config_file",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_read_config_file,
        metavar="YAML",
        help="Take options from a YAML file; flags and FEATX_* variables go before it.",
    )(command)


def unknown_variables(program: click.Group) -> Iterator[str]:
    """One line for every FEATX_* variable that no command reads, with the name it may have been meant to have."""
    known = {*_VARIABLES, *_variables_of(program)}
    names = [name.removeprefix("FEATX_") for name in sorted(known)]
    for name in sorted(set(os.environ) - known):
        if name.startswith("FEATX_") and not _OF_KUBERNETES.search(name):
            near = difflib.get_close_matches(name.removeprefix("FEATX_"), names, 1, 0.75)
            meant = f"; is it FEATX_{near[0]}?" if near else ""
            yield f"note: the variable {name} is set, and no command of featx reads it{meant}"


def _variables_of(command: click.Command) -> Iterator[str]:
    yield from (str(parameter.envvar) for parameter in command.params if parameter.envvar)
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _variables_of(inner)
