"""As many pairs of the same class as of different ones: python draw_pairs.py FEATURES.h5 PAIRS.csv COUNT"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

import featx


def main(features: Path, output: Path, count: int) -> None:
    opened = featx.open_features(features)
    rows, generator = opened.usable(), np.random.default_rng(0)
    labels = opened.labels[rows]
    pairs: dict[tuple[int, int], int] = {}
    for same in (1, 0):
        wanted = [
            (int(a), int(b)) for place, a in enumerate(rows) for b in rows[place + 1 :]
            if (opened.labels[a] == opened.labels[b]) == bool(same)
        ] if len(rows) < 2000 else []  # fmt: skip
        if not wanted:  # too many to list: draw them
            while len(wanted) < count:
                a, b = generator.integers(0, len(rows), 2)
                if a != b and (labels[a] == labels[b]) == bool(same):
                    wanted.append((int(rows[a]), int(rows[b])))
        chosen = generator.permutation(len(wanted))[:count]
        pairs |= {wanted[place]: same for place in chosen}
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "path2", "same"])
        writer.writerows([opened.paths[a], opened.paths[b], same] for (a, b), same in pairs.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
