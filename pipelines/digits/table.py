"""Print a table of layer x head accuracy from the reports of fit-svm and fit-softmax, and write it as CSV.

python table.py TABLE.csv REPORT.json...
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from featx.runtime.text import table


def main(target: Path, reports: list[Path]) -> None:
    found = [json.loads(path.read_text()) for path in reports]
    layers = list(dict.fromkeys(report["layer"] for report in found))
    cell = {(report["layer"], report["kind"]): report for report in found}
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "values", "svm", "softmax"])
        rows = []
        for layer in layers:
            svm, softmax = (cell[layer, kind]["metrics"]["accuracy"] for kind in ("svm", "softmax"))
            writer.writerow([layer, cell[layer, "svm"]["values"], f"{svm:.4f}", f"{softmax:.4f}"])
            rows.append([layer, cell[layer, "svm"]["values"], f"{svm:.1%}", f"{softmax:.1%}"])
    print("\n".join(table(["layer", "values", "linear SVM", "softmax"], rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
