"""One table of layers and distances: python table.py TABLE.csv LAYER.json ..."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from featx.runtime.text import table


def main(output: Path, reports: list[Path]) -> None:
    rows = [[path.stem, *row] for path in reports for row in json.loads(path.read_text())["rows"]]
    header = ["layer", "distance", "accuracy", "standard_error", "auc", "eer", "threshold"]
    with output.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))
