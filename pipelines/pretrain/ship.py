"""Turn a run's weights into what featx ships: float16 weights, a picture of the curves, and a model card.

python ship.py NET FOLDER EVALUATION.json RUN...

The runs are the cycles of the training, each started from the one before; what ships are the last one's weights.
EVALUATION.json is what `featx evaluate RUN DATA --split val --json` has printed for it. Writes NET.safetensors,
NET.png and NET.md into FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from featx.options.option import command_line
from featx.options.training import FinetuneConfig
from featx.runtime.text import table

PROCESSES = int(os.environ.get("PROCESSES", "1"))  # that trained together; see run.sh
CARD = """# {net}

{parameters:,} parameters for {side} x {side} pixels, {megabytes:.1f} MB as float16 (BatchNorm's counters left out).

- **Data**: Tiny ImageNet: {train:,} training images of {classes} classes, {val:,} validation images that took no
  part in the training.
- **Recipe**: `pipelines/pretrain/run.sh`, that is
{commands}
- **Seed** {seed}; {versions}; on {device}, {processes}.
- **Accuracy** on the {images:,} validation images: **{accuracy:.1%}** top-1, {top5:.1%} top-5 (float32 weights, by
  `featx evaluate`). The epoch was chosen on the same images, as is usual for this data set: that flatters by tenths.
- **Limits**: photographs of everyday things and animals, 64 pixels wide. Good for trying featx, for teaching, and for
  small images without a network; for photographs of full size AlexNet and VGG16 with their published weights transfer
  better. Handwritten digits hardly tell trained weights from random ones. The images come from the web as ImageNet's
  do, with its biases; not meant to recognise people.

Curves: [{net}.png]({net}.png)

```
{curve}
```
"""


def main(net: str, folder: Path, evaluation: Path, runs: list[Path]) -> None:
    last = runs[-1]
    state = load_file(last / "model.safetensors")
    kept = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values()), "float16 does not hold these weights"
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{net}.safetensors"
    save_file(kept, weights)
    weights.chmod(0o644)  # safetensors makes its files private
    shutil.copy(last / "curves.png", folder / f"{net}.png")
    report, metrics = json.loads((last / "report.json").read_text()), json.loads(evaluation.read_text())["metrics"]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    plan = configs[-1]["plan"]
    card = CARD.format(
        net=net,
        parameters=sum(tensor.numel() for name, tensor in kept.items() if "running" not in name),
        side=configs[-1]["preprocess"]["crop"],
        megabytes=weights.stat().st_size / 1e6,
        train=report["train"],
        val=report["val"],
        classes=len(report["classes"]),
        commands="\n".join(f"  `{command}`" for command in commands(configs, runs)),
        seed=plan["request"]["seed"],
        device=os.environ.get("DEVICE", "a GPU" if plan["request"]["device"].startswith("cuda") else "a CPU"),
        processes="in one process" if PROCESSES == 1 else f"in {PROCESSES} processes that share each step's images",
        versions=f"featx {plan['featx']}, torch {plan['torch']}, {plan['decoder']}",
        images=metrics["images"],
        accuracy=metrics["accuracy"],
        top5=metrics["top5"] or float("nan"),
        curve="\n".join(curve(runs)),
    )
    (folder / f"{net}.md").write_text(card)
    print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")


def commands(configs: list[dict[str, Any]], runs: list[Path]) -> list[str]:
    """What was typed for each cycle, wherever the runs are now."""
    asked = [FinetuneConfig(**config["plan"]["request"]) for config in configs]
    starts = [asked[0].backbone, *(f"OUT/{run.name}" for run in runs[:-1])]
    return [
        command_line("finetune", "DATA", replace(one, backbone=start))
        for one, start in zip(asked, starts, strict=True)
    ]


def curve(runs: list[Path]) -> list[str]:
    """The epochs of all cycles as one table."""
    rows = []
    for cycle, run in enumerate(runs, 1):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            e = json.loads(line)
            trained = [f"{e['loss']:.3f}", f"{e['accuracy']:.1%}"] if e["epoch"] else ["", ""]  # 0 is the start
            shown = [e["epoch"], *trained]
            rows.append([cycle, *shown, f"{e['val_loss']:.3f}", f"{e['val_accuracy']:.1%}"])
    return table(["cycle", "epoch", "loss", "accuracy", "val loss", "val accuracy"], rows)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), [Path(word) for word in sys.argv[4:]])
