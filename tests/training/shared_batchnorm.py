"""One of several processes that share a BatchNorm; for test_batchnorm.

    shared_batchnorm.py RANK COUNT MEETING_PLACE INPUTS OUTPUTS MOMENTUM

INPUTS holds values (B, C, ...), pulls of that shape, weight, bias and each process's share of the rows.
"""

from __future__ import annotations

import sys

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from featx.training.optimization.sync_batchnorm import share_batch_norm


def main(rank: str, count: str, place: str, given: str, kept: str, momentum: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=int(rank), world_size=int(count))
    tensors = load_file(given)
    first, last = tensors["shares"][int(rank)].tolist()
    values, pulls = (tensors[name][first:last] for name in ("values", "pulls"))
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[values.ndim]
    layer = nn.Sequential(kind(values.shape[1], momentum=None if momentum == "none" else float(momentum)))
    layer[0].load_state_dict({"weight": tensors["weight"], "bias": tensors["bias"]}, strict=False)
    before = layer[0]
    share_batch_norm(layer)
    assert layer[0] is before
    found = {}
    for turn in range(2):
        values = values.detach().clone().requires_grad_(True)
        outputs = layer(values)
        (outputs * pulls).sum().backward()
        found |= {f"outputs{turn}": outputs.detach(), f"to_values{turn}": values.grad}
    found |= {f"to_{name}": parameter.grad for name, parameter in layer[0].named_parameters()}
    found |= {name: buffer.double() for name, buffer in layer[0].named_buffers()}
    layer.eval()
    found["evaluated"] = layer(values).detach()
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, kept)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
