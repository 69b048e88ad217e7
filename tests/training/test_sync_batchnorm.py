"""BatchNorm in several processes against PyTorch's in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

SCRIPT = Path(__file__).with_name("shared_batchnorm.py")


@pytest.mark.parametrize(
    ("shape", "shares", "momentum"),
    [
        ((7, 5, 3, 4), [(0, 5), (5, 7)], "0.1"),
        pytest.param((6, 4), [(0, 1), (1, 3), (3, 6)], "none", marks=pytest.mark.slow),
    ],
)
def test_several_processes_normalise_as_one(tmp_path, shape, shares, momentum):
    generator = torch.Generator().manual_seed(0)
    values = 100 + torch.randn(shape, generator=generator)  # far from 0: a difference of sums would lose its digits
    pulls = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)
    save_file({"values": values, "pulls": pulls, "weight": weight, "bias": bias, "shares": torch.tensor(shares)},
              tmp_path / "given")  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(len(shares)), tmp_path / "meeting", tmp_path / "given",
             tmp_path / f"kept{rank}", momentum], stderr=subprocess.PIPE, text=True,
        )
        for rank in range(len(shares))
    ]  # fmt: skip
    for run in runs:
        assert run.wait(60) == 0, run.stderr.read()
        run.stderr.close()
    parts = [load_file(tmp_path / f"kept{rank}") for rank in range(len(shares))]

    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(
        shape[1], momentum=None if momentum == "none" else float(momentum)
    ).double()
    layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    for turn in range(2):
        asked = values.double().requires_grad_(True)
        outputs = layer(asked)
        (outputs * pulls).sum().backward()
        for name, expected in ((f"outputs{turn}", outputs.detach()), (f"to_values{turn}", asked.grad)):
            found = torch.cat([part[name] for part in parts]).double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in layer.named_parameters():
        found = sum(part[f"to_{name}"].double() for part in parts)  # each has its own images' part
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-4)
    for part in parts:
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(part[name], buffer.double(), rtol=1e-5, atol=0)
    layer.eval()
    found = torch.cat([part["evaluated"] for part in parts]).double()
    torch.testing.assert_close(found, layer(values.double()).detach(), rtol=1e-4, atol=1e-4)
