"""Of each way to decide, the share of the test clips with the right class, texture and direction."""

import csv
import sys
from pathlib import Path


def main(table: str, decisions: str) -> None:
    with open(decisions, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
    columns = [name for name in rows[0] if name not in ("path", "label", "part")]
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["decided_by", "clips", "class", "texture", "direction"])
        for column in [*columns[2:], *columns[:2]]:
            pairs = [(row["label"].split("-"), row[column].split("-")) for row in rows]
            shares = [
                sum(label == found for label, found in pairs),
                sum(label[0] == found[0] for label, found in pairs),
                sum(label[1] == found[1] for label, found in pairs),
            ]
            writer.writerow([Path(column).stem, len(rows), *(f"{share / len(rows):.4f}" for share in shares)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
