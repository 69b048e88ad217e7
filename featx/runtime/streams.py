"""Standard input, output and error, which a caller may have closed."""

from __future__ import annotations

import os
import sys


def open_missing_streams() -> None:
    """Treat streams that are closed, as by >&-, as /dev/null.

    Otherwise the first file that is opened would get the number of standard output or error, and what libraries print
    would be written into it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
