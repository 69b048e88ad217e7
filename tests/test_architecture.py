"""The house keeps its plan: imports point one way, nothing heavy is loaded early, nothing can run what it loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import featx

PACKAGE = Path(featx.__file__).parent
BASE = {"errors", "options", "config", "atomic", "progress", "report", "device", "lean_import"}
STAGES = {"images", "networks", "store", "heads", "figures"}
TRAINING = "training"  # may use all stages
FORBIDDEN = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}


def modules() -> dict[str, Path]:
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 30
    return found


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names.add(node.module or "")
    return names


def part(name: str) -> str:
    """The folder of a stage, `base`, or `verb`."""
    top = name.split(".", maxsplit=1)[0]
    return (
        top
        if top in {*STAGES, TRAINING}
        else "base"
        if top in BASE or top == "__init__"
        else "cli"
        if top in ("cli", "cli_options")
        else "verb"
    )


def test_imports_point_one_way():
    allowed = {"base": {"base"}, "cli": {"base", "cli", "verb"}, "verb": {"base", "verb", TRAINING, *STAGES}}
    allowed[TRAINING] = {"base", TRAINING, *STAGES}
    allowed |= {stage: {"base", stage} for stage in STAGES}
    wrong = []
    for name, path in modules().items():
        if name in ("__init__", "__main__"):
            continue
        for target in imported(path):
            inside = target.removeprefix("featx.") if target.startswith("featx.") else None
            if inside and part(inside) not in allowed[part(name)]:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_only_the_command_line_knows_click():
    assert [name for name, path in modules().items() if "click" in imported(path)] == ["cli", "cli_options"]


def test_nothing_that_could_run_loaded_data_is_imported():
    guilty = {name: imported(path) & FORBIDDEN for name, path in modules().items() if imported(path) & FORBIDDEN}
    assert guilty == {}


def test_torch_loads_weights_only_in_every_call():
    calls = [
        (name, node)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("torch.load", "yaml.load", "np.load", "numpy.load")
    ]
    assert [name for name, _ in calls] == ["networks.weights"]
    for _, node in calls:
        assert {k.arg: ast.unparse(k.value) for k in node.keywords}["weights_only"] == "True"


def test_help_loads_neither_torch_nor_anything_else_that_is_slow():
    program = (
        "import sys; from featx.cli import main\n"
        "try: main(['extract', '--help'])\n"
        "except SystemExit: print(*(m for m in ('torch','torchvision','sklearn','h5py','numpy') if m in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == ""


def test_everything_public_is_there_by_name_and_documented():
    for name in featx.__all__:
        thing = getattr(featx, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    assert set(dir(featx)) == set(featx.__all__)
    assert set(featx._HOME) | {"__version__"} == set(featx.__all__)


def test_no_room_has_grown_too_large():
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 420}
    assert long == {}


def test_every_escape_has_its_reason_beside_it():
    bare = []
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for mark in ("# type: ignore", "# noqa"):
                if mark in line and "#" not in line.split(mark, 1)[1]:
                    bare.append(f"{path.name}:{number}")
    assert bare == []
