"""The layout is what docs/design.md says: imports point one way, nothing heavy is loaded early, nothing can run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import featx

PACKAGE = Path(featx.__file__).parent
FORBIDDEN = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}

# What stands on one line may import what stands on the lines above it, and its own package.
LAYERS = (
    ("errors", "status"),
    ("options", "runtime"),
    ("distributed",),
    ("images", "networks", "store", "heads"),
    ("figures",),
    ("artifacts",),
    ("extraction",),
    ("training", "explain", "analysis"),
    ("verification", "reporting"),
    ("commands", "service"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MOST_AT_TOP, MOST_IN_PACKAGE, LONGEST = 5, 12, 300
# Package -> why it may hold more modules.
LARGE_PACKAGES: dict[str, str] = {}
# Module -> why it may be longer.
LONG_MODULES = {
    "cli": "every command of the command line stands in this one file; each does no more than call a function",
    "extraction.job": "one job in one process or several: the order of its steps is what keeps rows from being lost",
    "training.trainer": "the training loop is read from top to bottom",
}
# Module -> the private API it uses and why there is no public one.
PRIVATE_APIS = {
    "training.optimization.sync_batchnorm": "torch's SyncBatchNorm is for GPUs; its backward pass has no public form",
    "networks.checkpoints": "state_dict()._metadata holds the version MNASNet's loading asks for",
    "heads.estimators": "scikit-learn's own validation of sample weights, as its estimators use it",
}


def modules() -> dict[str, Path]:
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 100
    return found


def imports_of(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of every import in a file, wherever it stands, but for those of types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module or "", tuple(alias.name for alias in node.names)


def imported(path: Path) -> set[str]:
    return {module for module, _ in imports_of(path)}


def arrows() -> dict[str, set[str]]:
    """Module of featx -> modules of featx it imports, deferred imports included."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for module, names in imports_of(path):
            if not module.startswith("featx"):
                continue
            inside = module.removeprefix("featx").removeprefix(".")
            for imported_name in names or ("",):
                deeper = f"{inside}.{imported_name}".strip(".")
                targets.add(
                    deeper if deeper in known else inside if inside in known else f"{inside}.__init__".strip(".")
                )
        found[name] = targets - {name}
    return found


def top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, targets in arrows().items()
        for target in targets
        if top(name) != "__init__"
        and top(target) != "__init__"
        and top(name) != top(target)
        and LEVEL[top(target)] >= LEVEL[top(name)]
    ]
    assert wrong == []


def test_commands_do_not_import_each_other():
    wrong = [
        f"{name} imports {target}"
        for name, targets in arrows().items()
        for target in targets
        if top(name) == top(target) == "commands" and not target.endswith("__init__")
    ]
    assert wrong == []


def test_no_two_files_import_each_other_not_even_later():
    graph = {
        name: {t for t in targets if t != "__init__"} for name, targets in arrows().items() if name != "__init__"
    }
    while True:  # take away what imports nothing that is left
        free = {name for name, targets in graph.items() if not targets & graph.keys()}
        if not free:
            break
        graph = {name: targets for name, targets in graph.items() if name not in free}
    assert sorted(graph) == []


def test_packages_and_modules_stay_small():
    counts = Counter(name.rpartition(".")[0] for name in modules() if not name.endswith("__init__"))
    assert counts.pop("") < MOST_AT_TOP  # and __init__
    large = {package: count for package, count in counts.items() if count > MOST_IN_PACKAGE}
    assert large.keys() == LARGE_PACKAGES.keys()
    long = {name for name, path in modules().items() if len(path.read_text().splitlines()) > LONGEST}
    assert long == LONG_MODULES.keys()


def test_only_the_command_line_knows_click():
    assert [name for name, path in modules().items() if "click" in imported(path)] == ["cli", "options.click_options"]


PRIVATE = re.compile(
    r"torch\.(ops\.(mkldnn|aten)|_[a-z]\w*|\w+\._[a-z]\w*)|\b(sklearn|torchvision)[\w.]* import .*\b_\w+|\._metadata"
)


def test_private_interfaces_are_used_where_the_list_says():
    users = {
        name
        for name, path in modules().items()
        if not name.startswith("extraction.cpu_kernels.") and PRIVATE.search(path.read_text())
    }
    assert users == PRIVATE_APIS.keys()


@pytest.mark.parametrize(
    "forbidden",
    [
        "sys.modules",
        "meta_path",
        "gc.freeze",
        "gc.disable",
        "gc.set_threshold",
        "os.environ[",
        "os.environ.setdefault",
    ],
)
def test_the_library_leaves_the_interpreter_of_its_host_alone(forbidden):
    allowed = {"cli"} if forbidden in ("os.environ[", "os.environ.setdefault", "gc.set_threshold") else set()
    users = {name for name, path in modules().items() if forbidden in path.read_text()}
    assert users <= allowed


def test_memory_settings_of_the_process_are_for_our_own_commands():
    assert [name for name, path in modules().items() if "keep_freed_memory()" in path.read_text()] == [
        "cli", "runtime.memory",
    ]  # fmt: skip


def test_ranks_are_read_in_one_place():
    words = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC")
    users = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.strip().replace("_", "").isalnum()
        and node.value.isupper()
        and any(word in node.value for word in words)
    }
    assert users == {"runtime.environment"}


def test_no_network_is_told_by_its_class_outside_the_architectures():
    users = {
        name
        for name, path in modules().items()
        if not name.startswith("networks.architectures.")
        and any(
            module == "torchvision.models" and {"AlexNet", "VGG"} & set(names) for module, names in imports_of(path)
        )
    }
    assert users == set()


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
    assert [name for name, _ in calls] == [
        "artifacts.responses",
        "artifacts.shown_folder",
        "networks.checkpoints",
        "service.client",
    ]
    for _, node in calls:
        safe = ("allow_pickle", "False") if ast.unparse(node.func) == "np.load" else ("weights_only", "True")
        assert safe in {(k.arg, ast.unparse(k.value)) for k in node.keywords}


def test_help_loads_neither_torch_nor_anything_else_that_is_slow():
    program = (
        "import sys; from featx.cli import main\n"
        "try: main(['extract', '--help'])\n"
        "except SystemExit: print(*(m for m in ('torch','torchvision','sklearn','h5py','numpy') if m in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == ""


def test_an_extraction_does_not_wait_for_what_it_does_not_need():
    heavy = ("sklearn.decomposition", "sklearn.linear_model", "scipy.stats", "pandas", "matplotlib", "av", "cv2")
    program = f"import sys, featx.extraction.job; print(*(m for m in {heavy} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_everything_public_is_there_by_name_and_documented():
    for name in featx.__all__:
        thing = getattr(featx, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    assert set(dir(featx)) == set(featx.__all__)
    assert set(featx._HOME) | {"__version__"} == set(featx.__all__)


def test_every_escape_has_its_reason_beside_it():
    bare = []
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for mark in ("# type: ignore", "# noqa"):
                if mark in line and "#" not in line.split(mark, 1)[1]:
                    bare.append(f"{path.name}:{number}")
    assert bare == []
