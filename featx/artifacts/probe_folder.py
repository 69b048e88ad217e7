"""The folder of a probe as an output: report, table and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featx.artifacts.artifact import Artifact, Stored, refuse_foreign_files, write_json
from featx.artifacts.journal import JOURNAL
from featx.errors import FileFormatError
from featx.figures.layer_accuracy import draw_layers, draw_learning_curves
from featx.options.heads import PROBED, ProbeConfig
from featx.runtime.files import replacing
from featx.runtime.report import Report
from featx.runtime.stored import build, convert, read_json_file
from featx.runtime.text import format_duration, plural, printable, table

REPORT, TABLE, PICTURE = "probe.json", "probe.csv", "probe.png"
CURVE_TABLE, CURVE_PICTURE = "curve.csv", "curve.png"


@dataclass(frozen=True)
class ProbeRow:
    """One layer and head: mean accuracy per class over the repeats, and its standard deviation.

    Attributes:
        accuracies: of every repeat.
        c: the value used in every repeat; of ridge 1 / its penalty, of knn the neighbours.
        unproven: fits whose optimum could not be proven to the solver's tolerance.
    """

    layer: str
    head: str
    values: int
    accuracy: float
    deviation: float
    accuracies: list[float]
    c: list[float]
    unproven: int


@dataclass(frozen=True)
class CurvePoint:
    """A layer and head with fewer images per class: mean accuracy over the repeats, and its standard deviation."""

    layer: str
    head: str
    per_class: int
    accuracy: float
    deviation: float


@dataclass(frozen=True)
class ProbeReport(Report):
    """What `featx probe` found; the table of Zeiler & Fergus, ECCV 2014, Table 6 (arXiv:1311.2901v3, Table 7).

    Attributes:
        chance: 1 / number of classes.
        curve: with fewer images, where --curve asks for them.
    """

    output: Path | None
    title: str
    heads: list[str]
    classes: int
    per_class: int
    test: int
    repeats: int
    chance: float
    rows: list[ProbeRow]
    seconds: float
    curve: list[CurvePoint] = field(default_factory=list)

    def lines(self) -> list[str]:
        by_layer: dict[str, dict[str, ProbeRow]] = {}
        for row in self.rows:
            by_layer.setdefault(row.layer, {})[row.head] = row
        cells = [
            [
                layer,
                f"{next(iter(of.values())).values:,}",
                *(f"{100 * of[h].accuracy:.1f} ± {100 * of[h].deviation:.1f}" for h in self.heads),
            ]
            for layer, of in by_layer.items()
        ]
        best = max(self.rows, key=lambda row: row.accuracy)
        text = [
            f"{self.title}: {plural(self.classes, 'class', 'classes')}, {plural(self.per_class, 'training image')} "
            f"each, {plural(self.test, 'test image')} in all, {plural(self.repeats, 'repeat')}; mean accuracy per "
            f"class in %; {format_duration(self.seconds)}",
            *table(["layer", "values", *(PROBED[head] for head in self.heads)], cells),
            f"best: {best.layer} with a {PROBED[best.head]}, {best.accuracy:.1%}; chance is {self.chance:.1%}",
        ]
        if self.curve:
            text += ["with fewer images per class:", *table(*self._curve_table())]
        unproven = sum(row.unproven for row in self.rows)
        if unproven:
            text.append(f"NOT proven to be at their optimum: {plural(unproven, 'fit')}; see `unproven` in --json")
        text.append(f"saved in {self.output}" if self.output else "not saved: -o FOLDER keeps table and picture")
        return text

    def _curve_table(self) -> tuple[list[str], list[list[str]]]:
        counts = sorted({point.per_class for point in self.curve})
        by = {(point.layer, point.head, point.per_class): point.accuracy for point in self.curve}
        rows = [
            [row.layer, PROBED[row.head], *(f"{100 * by[row.layer, row.head, count]:.1f}" for count in counts)]
            for row in self.rows
        ]
        return ["layer", "head", *map(str, counts)], rows


class ProbeFolder(Artifact[ProbeReport]):
    """FOLDER with probe.json, probe.csv and probe.png."""

    noun = "probe"
    config = ProbeConfig

    def read(self) -> Stored[ProbeReport] | None:
        path = self.path / REPORT
        if not path.exists():
            if not (self.path / JOURNAL).exists():
                refuse_foreign_files(self.path, (TABLE, PICTURE, CURVE_TABLE, CURVE_PICTURE), "featx probe")
            return None
        stored = read_json_file(path)
        report = build(ProbeReport, stored, str(path), output=self.path, seconds=0.0)
        layers = {row.layer for row in report.rows}
        grid = sorted((layer, head) for layer in layers for head in report.heads)
        if (
            not grid
            or grid != sorted((row.layer, row.head) for row in report.rows)
            or not {*report.heads} <= {*PROBED}
        ):
            raise FileFormatError(f"{path}: its rows are not one for each layer and head")
        plan = convert(stored.get("plan", {}), dict[str, Any], f"{path}, plan")
        return Stored(plan, report)

    def take_finished(self, plan: Mapping[str, Any], images: Any = None) -> ProbeReport | None:
        report = super().take_finished(plan, images)
        if report is not None and not ((self.path / TABLE).exists() and (self.path / PICTURE).exists()):
            save_probe(report, self.path, plan)
        return report


def save_probe(report: ProbeReport, folder: Path, plan: Mapping[str, Any]) -> None:
    """Table and picture, and last of all the report: where it is, everything is."""
    kept = {key: value for key, value in report.to_json().items() if key not in ("output", "seconds")}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["layer", "head", "values", "accuracy", "deviation", *(f"repeat{i}" for i in range(report.repeats))]
    )
    for row in report.rows:
        numbers = [f"{value:.6f}" for value in (row.accuracy, row.deviation, *row.accuracies)]
        writer.writerow([printable(row.layer), row.head, row.values, *numbers])
    with replacing(folder / TABLE) as partial:
        partial.write_text(text.getvalue())
    described = {**kept, "plan": plan}
    draw_layers(described, folder / PICTURE)
    if report.curve:
        curve = io.StringIO()
        points = csv.writer(curve, lineterminator="\n")
        points.writerow(["layer", "head", "per_class", "accuracy", "deviation"])
        points.writerows(
            [printable(one.layer), one.head, one.per_class, f"{one.accuracy:.6f}", f"{one.deviation:.6f}"]
            for one in report.curve
        )
        with replacing(folder / CURVE_TABLE) as partial:
            partial.write_text(curve.getvalue())
        draw_learning_curves(described, folder / CURVE_PICTURE)
    write_json(folder / REPORT, described)
