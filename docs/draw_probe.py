"""The picture in the README: two probes in one, trained weights against random ones.

python docs/draw_probe.py TRAINED/probe.json RANDOM/probe.json docs/probe.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure


def main(trained: Path, random: Path, picture: Path) -> None:
    axes = (figure := Figure(figsize=(7.0, 3.6), layout="constrained", dpi=150)).subplots()
    for path, label, marker in ((trained, "trained on Tiny ImageNet", "o"), (random, "random weights", "s")):
        rows = [row for row in json.loads(path.read_text())["rows"] if row["head"] == "svm"]
        axes.errorbar(
            range(len(rows)),
            [100 * row["accuracy"] for row in rows],
            [100 * row["deviation"] for row in rows],
            label=label,
            marker=marker,
            markersize=4,
            capsize=3,
            linewidth=1.2,
        )
        axes.set_xticks(range(len(rows)), [row["layer"] for row in rows])
    axes.axhline(10, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, None)
    axes.set_ylabel("mean accuracy per class in %")
    axes.set_title("alexnet-mini, linear SVM, CIFAR-10, 50 images per class", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(picture, metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
