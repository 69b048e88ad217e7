"""Accuracy against images per class, as a table and a picture with error bars: python table.py OUT SHOTS..."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

from featx.options.heads import HEADS
from featx.runtime.text import table


def main(out: Path, shots: list[str]) -> None:
    rows = [
        [shot, row["head"], row["accuracy"], row["deviation"]]
        for shot in shots
        for row in csv.DictReader((out / shot / "probe.csv").read_text().splitlines())
    ]
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["per_class", "head", "accuracy", "deviation"], *rows])
    shown = [[row[0], HEADS[row[1]], f"{float(row[2]):.1%} ± {float(row[3]):.1%}"] for row in rows]
    print("\n".join(table(["per class", "head", "mean per class"], shown, left=2)))
    draw(out / "table.png", rows)


def draw(picture: Path, rows: list[list[str]]) -> None:
    axes = (figure := Figure(figsize=(5.5, 4.0), layout="constrained", dpi=150)).subplots()
    for head, marker in (("svm", "o"), ("softmax", "s")):
        of = [[float(value) for value in (row[0], *row[2:])] for row in rows if row[1] == head]
        axes.errorbar(
            [shot for shot, _, _ in of], [100 * accuracy for _, accuracy, _ in of], [100 * d for _, _, d in of],
            label=HEADS[head], marker=marker, markersize=4, capsize=3, linewidth=1.2,
        )  # fmt: skip
    places = sorted({int(row[0]) for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlabel("images per class to learn from")
    axes.set_ylabel("mean accuracy per class in %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
