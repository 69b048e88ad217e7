"""Run featx commands on a disk that becomes full at one call after another; needs full_disk.c, preloaded.

    LD_PRELOAD=full_disk.so python tests/filling.py FOLDER POINTS < COMMANDS

COMMANDS is JSON: name -> {"arguments": [...], "keeps": {...}}, the arguments with OUT for the folder of the output.
POINTS is how many places of each command are tried, evenly over all; 0 for every one. Prints one JSON object:
name -> {"calls": N, "tried": [[place, exit status, text, exit status of the next run, files that differ], ...]}.
The interpreter imports everything once and forks for every attempt.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import featx.extraction.engine  # imported before the forks, not in each
from featx.cli import main as featx
from featx.commands import check, evaluate, extract, finetune, fit, merge, predict, probe  # noqa: F401  # likewise

NEVER = 1 << 40


def run(arguments: list[str], folder: Path, said: Path, *, room: int | None) -> tuple[int, int]:
    """Exit status of a command in a child (negative: the signal that killed it), and its calls for space.

    Args:
        room: how many of them are answered; None leaves the disk as it is.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            text = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(text, 1)
            os.dup2(text, 2)
            disk = ctypes.CDLL(None)
            disk.full_disk_calls.restype = ctypes.c_long
            if room is not None:
                disk.full_disk(os.fsencode(folder), ctypes.c_long(room))
            try:
                featx(arguments)
            except SystemExit as stopped:
                status = int(stopped.code or 0)
            os.write(writing, str(disk.full_disk_calls()).encode())
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(ValueError):  # the command closes it where it was the output that was full
            sys.stdout.flush()
        os._exit(status)
    os.close(writing)
    calls = os.read(reading, 32)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(calls or 0)


def contents(folder: Path) -> dict[str, str]:
    """path -> hash of every file in a folder; locks, and the time something took, do not count."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(timeless(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def timeless(path: Path) -> bytes:
    """The content of a file; of JSON all but the members called seconds, in any order."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return content
    values = [json.loads(line) for line in (content.splitlines() if path.suffix == ".jsonl" else [content])]
    for value in values:
        value.pop("seconds", None)
    return json.dumps(values, sort_keys=True).encode()


def try_command(words: list[str], folder: Path, points: int) -> dict[str, Any]:
    """One command on a full disk, at `points` places, each followed by the same command with room."""
    said = folder / "said.txt"

    def fresh(name: str) -> tuple[Path, list[str]]:
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return out, [word.replace("OUT", str(out)) for word in words]

    out, arguments = fresh("out")
    status, calls = run(arguments, out, said, room=NEVER)
    assert status == 0, said.read_text()
    whole = contents(out)
    places = range(calls) if not points else sorted({round((i + 0.5) * (calls - 1) / points) for i in range(points)})
    tried = []
    for place in places:
        out, arguments = fresh("out")
        status, _ = run(arguments, out, said, room=place)
        text = said.read_text()
        again, _ = run(arguments, out, said, room=None)
        found = contents(out)
        differ = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
        tried.append([place, status, text, again, differ])
    return {"calls": calls, "tried": tried}


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    print(
        json.dumps(
            {name: try_command(words, Path(sys.argv[1]), int(sys.argv[2])) for name, words in commands.items()}
        )
    )
