"""A table of the networks' accuracies from the JSON that `featx evaluate` has printed."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path


def main() -> None:
    target, *reports = map(Path, sys.argv[1:])
    rows = []
    for path in reports:
        metrics = json.loads(path.read_text())["metrics"]
        top5 = "" if metrics["top5"] is None else f"{metrics['top5']:.4f}"  # five classes or fewer
        rows.append([path.stem, f"{metrics['accuracy']:.4f}", top5])
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "top1", "top5"])
        writer.writerows(rows)
    print(target.read_text(), end="")


if __name__ == "__main__":
    main()
