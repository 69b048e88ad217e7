"""Turn a run's weights into what featx ships: float16 weights, a picture of the curves, and a model card.

python ship.py RUN NET FOLDER EVALUATION.json

EVALUATION.json is what `featx evaluate RUN DATA --split val --json` has printed. Writes FOLDER/NET.safetensors,
FOLDER/NET.png and FOLDER/NET.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from featx.config import FinetuneConfig
from featx.options import command_line
from featx.report import table

PROCESSES = int(os.environ.get("PROCESSES", "1"))  # that trained together; see run.sh
CARD = """# {net}

{parameters:,} parameters for {side} x {side} pixels, {megabytes:.1f} MB as float16 (BatchNorm's counters left out).

- **Data**: Tiny ImageNet: {train:,} training images of {classes} classes, {val:,} validation images that took no
  part in the training.
- **Recipe**: `pipelines/pretrain/run.sh`, that is
  `{command}`
- **Seed** {seed}; {versions}; on a CPU, {processes}.
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


def main(run: Path, net: str, folder: Path, evaluation: Path) -> None:
    state = load_file(run / "model.safetensors")
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
    shutil.copy(run / "curves.png", folder / f"{net}.png")
    report, metrics = json.loads((run / "report.json").read_text()), json.loads(evaluation.read_text())["metrics"]
    config = json.loads((run / "config.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [
        [e["epoch"], f"{e['loss']:.3f}", f"{e['accuracy']:.1%}", f"{e['val_loss']:.3f}", f"{e['val_accuracy']:.1%}"]
        for e in epochs
    ]
    plan = config["plan"]
    asked = FinetuneConfig(**plan["request"])
    card = CARD.format(
        net=net,
        parameters=sum(tensor.numel() for name, tensor in kept.items() if "running" not in name),
        side=config["preprocess"]["crop"],
        megabytes=weights.stat().st_size / 1e6,
        train=report["train"],
        val=report["val"],
        classes=len(report["classes"]),
        command=command_line("finetune", "DATA", asked),
        seed=asked.seed,
        processes="in one process" if PROCESSES == 1 else f"in {PROCESSES} processes that share each step's images",
        versions=f"featx {plan['featx']}, torch {plan['torch']}, {plan['decoder']}",
        images=metrics["images"],
        accuracy=metrics["accuracy"],
        top5=metrics["top5"] or float("nan"),
        curve="\n".join(table(["epoch", "loss", "accuracy", "val loss", "val accuracy"], rows)),
    )
    (folder / f"{net}.md").write_text(card)
    print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
