"""The wheel and the source distribution hold what is needed, and a fresh environment runs what they install."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import featx

ROOT = Path(__file__).parents[1]


def run(*words: object, cwd: Path | None = None, **environment: str) -> str:
    found = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False, env=environment or None
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel made of a source distribution made of the files that are under version control."""
    folder = tmp_path_factory.mktemp("package")
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what belongs to the package is not known")
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    return folder / "dist"


def test_the_distributions_are_well_formed(built):
    found = sorted(path.name for path in built.iterdir())
    assert found == [f"featx-{featx.__version__}-py3-none-any.whl", f"featx-{featx.__version__}.tar.gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    run(sys.executable, "-m", "check_wheel_contents", "--toplevel", "featx", next(built.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("featx/")}
        metadata = wheel.read(f"featx-{featx.__version__}.dist-info/METADATA").decode()
    tracked = set(filter(None, run("git", "ls-files", "-z", "featx", cwd=ROOT).split("\0")))
    assert {name for name in tracked if (ROOT / name).is_file()} == held
    assert "featx/py.typed" in held
    assert "Requires-Python: >=3.11" in metadata


def test_a_fresh_environment_runs_it(built, tmp_path):
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", next(built.glob("*.whl")))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    about = {"PYTHONPATH": ":".join(libraries), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    featx_command = tmp_path / "fresh" / "bin" / "featx"
    assert run(featx_command, "--version", **about).strip() == f"featx, version {featx.__version__}"
    where = run(python, "-c", "import featx; print(featx.__file__)", cwd=tmp_path, **about)
    assert str(tmp_path / "fresh") in where  # not the one these tests run on
    assert "alexnet-mini" in run(featx_command, "weights", cwd=tmp_path, **about)


WITHOUT_LINUX = """
import os, sys
for name in ("sched_getaffinity", "posix_fallocate", "memfd_create"):
    delattr(os, name)
from featx.cli import main
main(sys.argv[1:])
"""


def test_without_what_only_linux_has_the_file_has_the_same_bytes(photos, tmp_path):
    words = ["extract", photos, "-b", "alexnet-mini", "-l", "fc7", "--device", "cpu", "-o"]
    run(sys.executable, "-m", "featx", *words, tmp_path / "linux.h5")
    run(sys.executable, "-c", WITHOUT_LINUX, *words, tmp_path / "other.h5")
    assert (tmp_path / "other.h5").read_bytes() == (tmp_path / "linux.h5").read_bytes()


def test_windows_is_refused_in_one_line(tmp_path):
    text = (
        "import sys; sys.platform = 'win32'\ntry:\n    import featx\nexcept ImportError as error:\n    print(error)"
    )
    said = run(sys.executable, "-c", text)
    assert said == "featx runs on Linux and macOS; on Windows use it under WSL or as a container\n"
