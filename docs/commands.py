"""Write docs/commands.md from the commands' own --help; with --check, say whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from featx.cli import commands

TARGET = Path(__file__).with_name("commands.md")
HEAD = """# Commands

Made from `featx COMMAND --help` by `make docs`. Every option but `-o`, `--json` and `--config` can also be set
by a variable (`--batch-size` is `FEATX_BATCH_SIZE`) or in a YAML file given with `--config`; flags go before
variables, variables before the file. A `FEATX_` variable that no command reads is named in a note.

Before the command: `featx --trust CODE` lets code run that made a network ([networks.md](networks.md));
`--log-format time` puts the time before every line of standard error, `json` makes each an object with time, level,
and message, progress with numbers of its own; `-q` leaves errors alone, `-v` says each bad image at once and where
an error happened; progress in a log has its time in any case; `--metrics-file FILE` keeps the progress for
Prometheus' textfile collector. Their variables are `FEATX_LOG_FORMAT`, `FEATX_QUIET`,
`FEATX_VERBOSE`, `FEATX_METRICS_FILE`. With `--json` an error is an object on standard output too.

Exit status: 0 done; 1 unexpected, or a download failed; 2 the request cannot be carried out; 3 too many bad images;
4 the output was made with other settings, or a hash does not match; 5 verification failed; 74 the disk is full or
failed; 75 another process is writing the file; 130 and 143 interrupted, run again to resume.
"""


def rendered() -> str:
    sections = [HEAD]
    for name in sorted(commands.commands):
        sections += help_of(commands.commands[name], f"featx {name}")
    return "\n".join(sections)


def help_of(command: click.Command, name: str) -> list[str]:
    """The section of a command, and those of its own commands."""
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
    sections = [f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            sections += help_of(command.commands[inner], f"{name} {inner}")
    return sections


def main() -> None:
    text = rendered()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.exit(f"{TARGET.name} does not say what --help says; run: make docs")


if __name__ == "__main__":
    main()
