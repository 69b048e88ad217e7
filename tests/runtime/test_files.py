"""What the operating system refuses is said in its words, whoever asked it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from featx.errors import DiskError, allow_more, bad_allowed
from featx.runtime.files import disk_errors


def test_a_librarys_paragraph_about_an_error_becomes_the_systems_words():
    with pytest.raises(DiskError, match=r"^f\.h5: Permission denied$"), disk_errors(Path("f.h5")):
        raise OSError(
            errno.EACCES, "Unable to synchronously create file (unable to open file: name = 'f.h5', errno = 13)"
        )
    with pytest.raises(DiskError, match=r"^f\.h5: a broken link$"), disk_errors(Path("f.h5")):
        raise OSError(errno.ENOENT, "a broken link")
    with pytest.raises(DiskError, match=r"^f\.h5: torn$"), disk_errors(Path("f.h5")):
        raise OSError("torn")


@pytest.mark.parametrize("images", [1, 7, 23, 100, 999])
def test_what_a_refusal_advises_is_enough(images):
    for bad in range(1, images + 1):
        share = int(allow_more(bad, images).split()[1].rstrip("%")) / 100
        assert bad <= bad_allowed(share, images) <= bad + images / 100 + 1
