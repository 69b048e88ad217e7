"""One table of the heads on frozen features and the fine-tuned networks: python table.py OUT"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from featx.runtime.text import table

WAYS = ("frozen-svm", "frozen-softmax", *(f"finetuned-{policy}" for policy in ("head", "fc", "all", "decay:0.5")))


def main(out: Path) -> None:
    rows = []
    for way in WAYS:
        metrics = json.loads((out / f"{way}.json").read_text())["metrics"]
        rows.append([way, metrics["images"], f"{metrics['accuracy']:.4f}", f"{metrics['mean_per_class']:.4f}"])
    header = ["way", "test_images", "accuracy", "mean_per_class"]
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print("\n".join(table(["way", "test images", "accuracy", "mean per class"], rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
