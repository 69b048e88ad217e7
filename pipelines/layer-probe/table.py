"""Join the tables of several probes, one network after the other: python table.py OUT NET..."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from featx.runtime.text import table


def main(out: Path, nets: list[str]) -> None:
    rows = [
        [net, row["layer"], row["head"], row["values"], row["accuracy"], row["deviation"]]
        for net in nets
        for row in csv.DictReader((out / net / "probe.csv").read_text().splitlines())
    ]
    header = ["network", "layer", "head", "values", "accuracy", "deviation"]
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    shown = [[*row[:4], f"{float(row[4]):.1%} ± {float(row[5]):.1%}"] for row in rows]
    print("\n".join(table(["network", "layer", "head", "values", "mean per class"], shown, left=3)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
