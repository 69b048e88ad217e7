"""The process that decodes: it loads nothing but Pillow and NumPy, and answers questions in JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

from featx.images.block import Block, parts_of
from featx.images.decode import pillow_settings
from featx.images.manifest import NO_LABEL, Manifest
from featx.images.preprocess import Preprocess
from featx.images.processes.turns import Turns
from featx.images.reader import BlockReader

_LOOKED_EVERY_S = 1.0  # whether who has asked is still there


def answer_questions(tape: int, answers: int, asker: int) -> None:
    """The process: answers questions on standard input until there are no more, or nobody is there who asks.

    Args:
        tape: descriptor of the file in memory.
        answers: where they are written to.
        asker: the process that has started this one.
    """
    threading.Thread(target=_end_with, args=(asker,), daemon=True).start()
    reader: BlockReader | None = None
    with pillow_settings(), os.fdopen(answers, "wb") as told:
        for line in sys.stdin.buffer:
            try:
                question = json.loads(line)
                manifest = _manifest(question, reader)
                if reader is None:
                    preprocess = Preprocess.from_values(question["preprocess"])
                    turns = Turns(question["turns"], question["turns_file"], partial(_write_now, told, b"waits\n"))
                    options = {name: question[name] for name in ("exif", "timeout_s")}
                    reader = BlockReader(manifest, preprocess, question["size"], **options, turns=turns)
                    reader.tell = partial(_write_now, told, b"\n")
                reader.manifest = manifest
                rows = range(len(manifest))
                answer = _put(reader.rows(rows, size=question["size"], keep_encoded=question["keep_encoded"]), tape)
            except Exception as error:  # who has asked raises it
                known = error if isinstance(error, OSError) else None
                answer = {
                    "error": {
                        "kind": type(error).__name__,
                        "reason": str(error) if known is None else known.strerror,
                        "errno": None if known is None else known.errno,
                        "file": None if known is None or known.filename is None else os.fsdecode(known.filename),
                    }
                }
            _write_now(told, json.dumps(answer).encode() + b"\n")


def _write_now(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()


def _end_with(asker: int) -> None:
    """A block may take long, and another process may have inherited the questions' pipe."""
    while os.getppid() == asker:
        time.sleep(_LOOKED_EVERY_S)
    os._exit(1)


def _manifest(question: dict[str, Any], reader: BlockReader | None) -> Manifest:
    kind, root = (
        (question["kind"], Path(question["root"])) if reader is None else (reader.manifest.kind, reader.manifest.root)
    )
    paths = tuple(os.fsencode(path) for path in question["paths"])
    none = (NO_LABEL,) * len(paths)
    return Manifest(kind, root, root, paths, none, (), none, ())


def _put(block: Block, tape: int) -> dict[str, Any]:
    """Write a block's arrays and files onto the tape; what the answer says of it."""
    kept = block.encoded or {}
    pixels = len(kept) < len(block.status)
    os.ftruncate(tape, 0)
    place = 0
    for part in parts_of(block, pixels=pixels):
        place = _write(tape, part, place)
    for file in kept.values():
        place = _write(tape, memoryview(file.content), place)
    return {
        "read_s": block.read_s, "decode_s": block.decode_s, "reasons": block.reasons, "pixels": pixels,
        "encoded": [[place, len(file.content), file.pixels] for place, file in kept.items()],
    }  # fmt: skip


def _write(tape: int, content: memoryview, place: int) -> int:
    while content:
        done = os.pwrite(tape, content, place)
        content, place = content[done:], place + done
    return place
