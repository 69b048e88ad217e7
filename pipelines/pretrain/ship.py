"""Turn a run's weights into the file featx ships: float16, BatchNorm's counters left out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    run, target = Path(sys.argv[1]), Path(sys.argv[2])
    state = load_file(run / "model.safetensors")
    kept = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values()), "float16 does not hold these weights"
    save_file(kept, target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
