"""Commands start without torch.compile, and it is there when somebody asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import write_photo


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_command_that_runs_a_network_does_not_load_it():
    program = """
import sys
from featx.cli import main
try:
    main(["layers", "alexnet"])
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules, [name for name in sys.modules if name.startswith("torch._dynamo.")])
"""
    assert run(program).splitlines()[-1] == "True ['torch._dynamo.utils']"


PREPARE = """
import sys
from featx.lean_import import spare_the_compiler, spare_the_meta_kernels
spare_the_compiler()
spare_the_meta_kernels()
import torch, torchvision
assert "sympy" not in sys.modules
parameter = torch.zeros(3, requires_grad=True)
assert type(sys.modules["torch._dynamo"]).__name__ == "_Compiler"
"""


def test_a_function_that_is_compiled_is_compiled():
    program = f"""{PREPARE}
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
print(torch.compile(lambda x: x + 1, backend=backend)(parameter.detach()).tolist(), len(graphs))
import torch._dynamo.utils
print(torch._dynamo.utils.__file__ is not None, sys.modules["torch._dynamo"].__file__ is not None)
"""
    assert run(program).splitlines() == ["[1.0, 1.0, 1.0] 1", "True True"]


def test_training_loads_what_it_asks_for():
    program = f"""{PREPARE}
optimiser = torch.optim.SGD([parameter], lr=1.0)
parameter.sum().backward()
optimiser.step()
print(parameter.tolist())
"""
    assert run(program) == "[-1.0, -1.0, -1.0]"


def test_torchvisions_question_is_answered_by_pytorch():
    program = f"""{PREPARE}
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
print([asked(device) == is_compile_supported(device) for device in ("cpu", "cuda", "meta")], asked("meta"))
"""
    assert run(program) == "[True, True, True] False"


def test_a_part_that_is_imported_by_name_is_the_one_that_is_used():
    program = f"""{PREPARE}
import torch._dynamo.config as settings
settings.suppress_errors = True
import torch._dynamo.exc as errors
import torch._dynamo as whole
print(whole.convert_frame.config is settings, whole.config is settings, whole.convert_frame.exc is errors)
print(errors.__spec__.origin == errors.__file__)
"""
    assert run(program).splitlines() == ["True True True", "True"]


def test_functions_are_marked_by_decorators_of_every_form():
    program = f"""{PREPARE}
@torch.compiler.disable(recursive=False)
def one(): return 1
@torch.compiler.disable
def two(): return 2
print(one(), two(), sys.modules["torch._dynamo"].disable(fn=two)())
import importlib.util
print(importlib.util.find_spec("torch._dynamo") is not None)
"""
    assert run(program).splitlines() == ["1 2 2", "True"]


def test_threads_that_ask_first_wait_for_one_another():
    program = f"""{PREPARE}
import threading
from featx import lean_import
found = []
stand_in = sys.modules["torch._dynamo"]
threads = [threading.Thread(target=lambda: found.append(stand_in.config.__name__)) for _ in range(4)]
with lean_import._lock:
    for thread in threads: thread.start()
    threads[0].join(1)
    print(found, type(sys.modules["torch._dynamo"]).__name__)
for thread in threads: thread.join()
print(found)
"""
    assert run(program).splitlines() == ["[] _Compiler", str(["torch._dynamo.config"] * 4)]


def test_a_program_that_has_loaded_torch_already_is_left_alone():
    program = """
import torch, sys
from featx.lean_import import spare_the_compiler
spare_the_compiler()
print("torch._dynamo" in sys.modules)
"""
    assert run(program) == "False"


def test_the_shapes_of_alexnet_and_vgg_need_no_sympy():
    program = f"""{PREPARE}
from featx.networks.backbones import Backbone
for name in ("alexnet", "vgg16", "vgg11_bn", "alexnet-mini", "vgg-mini"):
    Backbone(name).geometry
print("sympy" in sys.modules, "triton" in sys.modules)
Backbone("resnet18").geometry
print("sympy" in sys.modules, type(sys.modules["torch.fx.experimental.symbolic_shapes"]).__name__)
"""
    assert run(program).splitlines() == ["False False", "True module"]


def test_truth_values_get_the_answers_of_pytorch():
    program = f"""{PREPARE}
import itertools
names = ["expect_true", "guard_or_false", "guard_or_true", "statically_known_true", "sym_and", "sym_or"]
stand_in = sys.modules["torch.fx.experimental.symbolic_shapes"]
asked = [(n, v) for n in names for v in itertools.product((True, False), repeat=3 if n.startswith("sym") else 1)]
ours = [getattr(stand_in, name)(*values) for name, values in asked]
assert sys.modules["torch.fx.experimental.symbolic_shapes"] is stand_in
real = stand_in.loaded()
print(ours == [getattr(real, name)(*values) for name, values in asked], real is not stand_in, "sympy" in sys.modules)
print(stand_in.ShapeEnv is real.ShapeEnv)
from torch.fx.experimental.symbolic_shapes import guard_or_false
print(guard_or_false is real.guard_or_false)
"""
    assert run(program).splitlines() == ["True True True", "True", "True"]


def extract(backbone: str, layers: str, folder: str) -> str:
    return f"""
import sys
from featx.cli import main
try:
    main(["extract", "{folder}/photos", "-b", "{backbone}", "-w", "random:0", "-l", "{layers}", "-o", "{folder}/f.h5"])
except SystemExit as end:
    assert not end.code, end.code
print(type(sys.modules["torch._meta_registrations"]).__name__, "torch._decomp" in sys.modules, "sympy" in sys.modules)
"""


@pytest.mark.parametrize(("backbone", "layers"), [("alexnet", "conv5,fc7"), ("vgg11", "all"), ("vgg-mini", "all")])
def test_the_classic_networks_are_measured_without_pytorchs_meta_kernels(tmp_path, backbone, layers):
    write_photo(tmp_path / "photos" / "0.jpg", 0)
    assert run(extract(backbone, layers, str(tmp_path))).splitlines()[-1] == "_StandIn False False"


def test_other_networks_get_them(tmp_path):
    write_photo(tmp_path / "photos" / "0.jpg", 0)
    assert run(extract("squeezenet1_1", "features.3", str(tmp_path))).splitlines()[-1].startswith("module True")


def test_every_network_is_built_without_them():
    program = """
import sys
from featx.lean_import import spare_the_compiler, spare_the_meta_kernels
spare_the_compiler()
spare_the_meta_kernels()
from featx.networks.construct import backbone_names, construct
for name in backbone_names():
    construct(name)
print(len(backbone_names()) > 80, type(sys.modules["torch._meta_registrations"]).__name__)
"""
    assert run(program) == "True _StandIn"


def test_who_loads_the_compiler_has_the_meta_kernels_too():
    program = f"""{PREPARE}
assert type(sys.modules["torch._meta_registrations"]).__name__ == "_StandIn"
import torch._dynamo.config
print(torch.nn.functional.adaptive_avg_pool2d(torch.empty(2, 3, 9, 9, device="meta"), 4).shape)
print(sys.modules["torch._meta_registrations"].__file__ is not None, "torch._decomp" in sys.modules)
"""
    assert run(program).splitlines() == ["torch.Size([2, 3, 4, 4])", "True True"]


def test_only_extraction_goes_without_them():
    program = """
import sys
from featx.cli import main
try:
    main(["layers", "alexnet"])
except SystemExit as end:
    assert not end.code, end.code
import torch
print(sys.modules["torch._meta_registrations"].__file__ is not None, torch.Generator().manual_seed(3).initial_seed())
"""
    assert run(program).splitlines()[-1] == "True 3"


@pytest.mark.parametrize("spec", ["auto", "cuda", "cuda:1"])
def test_gpus_get_them_for_their_random_numbers(spec):
    program = f"""{PREPARE}
from featx import device
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2  # nothing is asked of them here
print([str(device.choose_device(spec)) for spec in ("{spec}", "cpu")])
print(sys.modules["torch._meta_registrations"].__file__ is not None, torch.Generator().manual_seed(3).initial_seed())
"""
    assert run(program).splitlines() == [f"['{spec}', 'cpu']".replace("auto", "cuda"), "True 3"]


def test_nobody_looks_for_garbage_while_modules_are_loaded():
    program = """
import gc, sys
from featx.lean_import import importing, spare_the_compiler
spare_the_compiler()
looked = []
gc.callbacks.append(lambda phase, info: looked.append(phase))
with importing():
    import featx.extracting
print(len(looked), gc.isenabled(), gc.get_freeze_count() > 100_000)
gc.disable()
with importing():
    pass
print(gc.isenabled())
"""
    assert run(program).splitlines() == ["0 True True", "False"]


def test_the_garbage_of_other_programs_is_theirs():
    program = """
import gc
from featx.lean_import import importing
before = gc.get_freeze_count()
with importing():
    print(gc.isenabled())
print(gc.get_freeze_count() <= before)
"""
    assert run(program).splitlines() == ["True", "True"]


def test_commands_load_their_modules_so(tmp_path):
    write_photo(tmp_path / "photos" / "0.jpg", 0)
    asked = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    program = f"{extract('vgg-mini', 'conv1_1', str(tmp_path))}\n{asked}"
    assert run(program).splitlines()[-1] == "True True"
