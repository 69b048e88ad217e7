"""The errors of the trained variants beside the published ones, and those of lesions: python table.py OUT SPLIT"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

from featx.figures.bars import draw_bars
from featx.networks.build import construct
from featx.runtime.text import table

# Zeiler & Fergus 2014, Table 3: training and validation error on ImageNet 2012, top-1, in percent.
PUBLISHED = {
    "whole": ("35.1", "40.5"),
    "without-3-4": ("41.8", "45.4"),
    "without-7": ("27.4", "40.0"),
    "without-6-7": ("27.4", "44.8"),
    "without-3-4-6-7": ("71.1", "71.3"),
    "wider-6-7": ("26.8", "40.0"),
}
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


def error(report: Path) -> float:
    return 1 - float(json.loads(report.read_text())["report"]["metrics"]["accuracy"])


def seeds_of(out: Path, name: str, ending: str) -> list[float]:
    return [error(path) for path in sorted(out.glob(f"{name}-seed*{ending}")) if path.stem.count("seed") == 1]


def spread(errors: list[float]) -> float:
    return statistics.stdev(errors) if len(errors) > 1 else 0.0


def main(out: Path, split: str) -> None:
    rows, means = [], []
    trained = {name: figures for name, figures in PUBLISHED.items() if seeds_of(out, name, f".{split}.json")}
    for name, published in trained.items():
        both = [seeds_of(out, name, f".{part}.json") for part in ("train", split)]
        means.append([(statistics.mean(errors), spread(errors)) for errors in both])
        run = next(out.glob(f"{name}-seed*/config.json")).parent
        parameters = sum(parameter.numel() for parameter in construct(str(run)).parameters())
        figures = [f"{100 * value:.1f}" for pair in means[-1] for value in pair]
        rows.append([name, len(both[1]), parameters, *figures, *published])
    for layer in LAYERS:
        errors = seeds_of(out, f"lesion-{layer}", ".json")
        if not errors:
            continue
        figures = [f"{100 * statistics.mean(errors):.1f}", f"{100 * spread(errors):.1f}"]
        rows.append([f"lesion of {layer}", len(errors), "", "", "", *figures, "", ""])
    header = ["network", "seeds", "parameters", "train_error", "train_spread", "error", "spread", "published_train",
              "published_error"]  # fmt: skip
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    columns = ["network", "seeds", "parameters", "training error", "+-", "error", "+-", "published", "published"]
    print("\n".join(table(columns, [[str(value) for value in row] for row in rows])))
    series = ("training error", f"{split} error")
    draw_bars(
        {what: [100 * pair[place][0] for pair in means] for place, what in enumerate(series)},
        {what: [100 * pair[place][1] for pair in means] for place, what in enumerate(series)},
        list(trained), "error in percent", out / "ablation.png",
        "Layers taken out, the rest trained from scratch: mean and spread over seeds",
    )  # fmt: skip
    print(f"errors in percent; lesions: half of the units silent, not trained again. To open: {out / 'ablation.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
