"""Commands that are stopped half-way, or have nothing left to do."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from featx.errors import FileFormatError
from featx.status import Status
from featx.store.open import open_features

# A program that runs a command and fails if that has loaded torch.
WITHOUT_TORCH = (
    "import sys; from featx.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
)


def stop_half_way(arguments: Sequence[str], half: Path, results: Sequence[Path], how: signal.Signals) -> None:
    """Run featx and send it a signal once four rows of its unfinished features file are done.

    Args:
        half: that file.
        results: what a run that comes to its end leaves, deleted before the next try.
    """
    expected = -signal.SIGKILL if how == signal.SIGKILL else 128 + how
    for _ in range(5):  # on a busy machine a run can come to its end before it is seen to have begun
        running = subprocess.Popen([sys.executable, "-m", "featx", *arguments], stderr=subprocess.DEVNULL)
        while running.poll() is None:
            with contextlib.suppress(FileFormatError):  # not there yet, or gone again
                if (open_features(half, partial=True).status == Status.DONE).sum() >= 4:
                    running.send_signal(how)
                    break
            time.sleep(0.002)
        if running.wait(120) == expected:
            break
        for path in results:
            path.unlink()
    assert running.returncode == expected
    assert not any(path.exists() for path in results)


def swap(one: Path, other: Path) -> None:
    """Let two files change places, names staying."""
    content, rest = one.read_bytes(), other.read_bytes()
    assert content != rest
    one.write_bytes(rest)
    other.write_bytes(content)
