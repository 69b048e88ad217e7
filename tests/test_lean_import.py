"""Commands start without torch.compile, and it is there when somebody asks for it."""

from __future__ import annotations

import subprocess
import sys


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
from featx.lean_import import spare_the_compiler
spare_the_compiler()
import torch, torchvision
assert "sympy" not in sys.modules
parameter = torch.zeros(3, requires_grad=True)
optimiser = torch.optim.SGD([parameter], lr=1.0)
parameter.sum().backward()
optimiser.step()
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
    assert run(program).splitlines() == ["[0.0, 0.0, 0.0] 1", "True True"]


def test_torchvisions_question_is_answered_by_pytorch():
    program = f"""{PREPARE}
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
print([asked(device) == is_compile_supported(device) for device in ("cpu", "cuda", "meta")], asked("meta"))
"""
    assert run(program) == "[True, True, True] False"


def test_a_part_that_is_imported_by_name_is_the_real_one():
    program = f"""{PREPARE}
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo import config
print(OptimizedModule.__module__, type(config).__name__ != "_StandIn", sys.modules["torch._dynamo"].__file__ is not None)
"""
    assert run(program) == "torch._dynamo.eval_frame True True"


def test_a_program_that_has_loaded_torch_already_is_left_alone():
    program = """
import torch, sys
from featx.lean_import import spare_the_compiler
spare_the_compiler()
print("torch._dynamo" in sys.modules)
"""
    assert run(program) == "False"
