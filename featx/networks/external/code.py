"""Names that mean code of the user's: `path/net.py:build` and `package.module:build`; which of them may run.

A features file, a head or a run says which network made it. That must never run anything by itself: code runs only if
somebody has named it, on the command line or in Python. Importing this module runs and loads nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from featx.errors import UsageError, WeightsMismatch
from featx.networks.run_folder import is_run, read_run
from featx.runtime.files import sha256_of_file

TIMM = "timm:"
_CODE = re.compile(r"(?P<where>.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<what>[A-Za-z_]\w*)")
_trusted: dict[str, str] = {}  # what it is called without its folder -> as it was named


def is_code(name: str) -> bool:
    """Whether a network's name means code.

    >>> is_code("nets/mine.py:build"), is_code("package.nets:build"), is_code("timm:resnet50"), is_code("vgg16")
    (True, True, False, False)
    """
    return not name.startswith(TIMM) and _CODE.fullmatch(name) is not None


def trust_code(name: str) -> None:
    """Let the code that a name means run from now on, also where a file says that it made it.

    A name that means no code is left alone.
    """
    if is_code(name) and not is_run(name):  # a folder may be called anything
        _trusted[_short(name)] = name


def trusted(name: str) -> str:
    """The code that a name means, as it was named here: a file may have another folder now than when it was used.

    Raises:
        UsageError: nobody has named it.
    """
    found = _trusted.get(_short(name))
    if found is None:
        raise UsageError(
            f"the network is made by code, {name}, and featx runs code only if you name it: look at it, then write "
            f"featx --trust {name} before the command"
        )
    return found


def code_of(name: str) -> str | None:
    """What stands for the code of a network in the files made with it; None for networks of featx and torchvision.

    Args:
        name: of a network, or the folder of a run.

    Raises:
        UsageError: code that is not trusted, or not there.
    """
    if is_run(name):
        name = read_run(name).backbone
    if name.startswith(TIMM):
        try:
            return f"timm {importlib.metadata.version('timm')}"
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(f"{name} needs timm: pip install 'featx[timm]'") from None
    if not is_code(name):
        return None
    source = source_of(trusted(name))
    return f"{source.name} sha256 {sha256_of_file(source)}"


def refuse_changed_code(name: str, made_with: str | None) -> None:
    """Raise WeightsMismatch if code of the user's is another one than made some features or a run.

    Args:
        name: of a network, or the folder of a run.
        made_with: what stands for the code there.
    """
    own = read_run(name).backbone if is_run(name) else name
    if is_code(own) and made_with != (now := code_of(own)):
        raise WeightsMismatch(f"{own} is {now} now; what is asked for was made with {made_with}")


def source_of(name: str) -> Path:
    """The file that code stands in; packages around it are imported to find it.

    Raises:
        UsageError: there is none.
    """
    where = split(name)[0]
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise UsageError(f"no file {where}, which {name} is to be read from")
        return Path(where)
    try:
        spec = importlib.util.find_spec(where)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UsageError(f"no Python module {where} for {name}; is its folder in PYTHONPATH?")
    return Path(spec.origin)


def split(name: str) -> tuple[str, str]:
    """The file or module, and the callable in it."""
    where, _, what = name.rpartition(":")
    return where, what


def _short(name: str) -> str:
    where, what = split(name)
    return f"{Path(where).name if where.endswith('.py') else where}:{what}"
