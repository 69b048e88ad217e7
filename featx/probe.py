"""`featx probe`: which layer transfers best? Every layer, both heads, repeated splits."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import io
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from featx.atomic import replacing
from featx.config import HEADS, ExtractConfig, ProbeConfig
from featx.errors import (
    FileFormatError,
    LabelError,
    NonFiniteRow,
    UnknownLayer,
    UsageError,
)
from featx.extract import extract_features
from featx.figures.layers import draw_layers
from featx.fit import damaged_row, plan_of
from featx.heads.labels import is_multilabel, labels_among
from featx.heads.linear import LinearHead
from featx.heads.metrics import measure
from featx.heads.split import Rows, split_per_class
from featx.probe_journal import JOURNAL, Journal, Outcome, refuse_other_probe
from featx.progress import ALREADY_THERE, SILENT, Reporter, format_duration
from featx.report import Report, printable, table
from featx.resident import ResidentLayers
from featx.store.reader import Features, open_features

if TYPE_CHECKING:
    from featx.heads.solver.reading import Values

REPORT, TABLE, PICTURE = "probe.json", "probe.csv", "probe.png"


@dataclass(frozen=True)
class ProbeRow:
    """One layer and head: mean accuracy per class over the repeats, and its standard deviation.

    Attributes:
        accuracies: of every repeat.
        c: the value used in every repeat.
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
class ProbeReport(Report):
    """What `featx probe` found; the table of Zeiler & Fergus, ECCV 2014, Table 6 (arXiv:1311.2901v3, Table 7).

    Attributes:
        chance: 1 / number of classes.
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
            f"{self.title}: {self.classes} classes, {self.per_class} images each to train, {self.test:,} in all to "
            f"test, {self.repeats} repeats; mean accuracy per class in %; {format_duration(self.seconds)}",
            *table(["layer", "values", *(HEADS[head] for head in self.heads)], cells),
            f"best: {best.layer} with a {HEADS[best.head]}, {best.accuracy:.1%}; chance is {self.chance:.1%}",
        ]
        unproven = sum(row.unproven for row in self.rows)
        if unproven:
            text.append(f"NOT proven to be at their optimum: {unproven} fits; see `unproven` in --json")
        text.append(f"saved in {self.output}" if self.output else "not saved: -o FOLDER keeps table and picture")
        return text


def probe_layers(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    config: ProbeConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ProbeReport:
    """Measure how well each layer of a features file separates the classes.

    The same call again goes on where an interrupted one has stopped, or does nothing if all is there.

    Args:
        source: a features file; or images (folder, list, CSV, zip), whose layers are extracted into the output folder
            first.
        output: a folder for probe.json, probe.csv and probe.png; None to report only.

    Raises:
        PlanMismatch: the folder holds another probe.
        LabelError: no labels, or classes with too few images.
        FileFormatError: images as source but no output folder; damaged features.
    """
    started = time.perf_counter()
    config = config or ProbeConfig()
    folder = None if output is None else Path(output)
    resident = ResidentLayers()
    features, given = _features_of(Path(source), folder, config, resident, reporter)
    layers = _layers_of(features.path, list(features), config.layers if given else "all")
    heads = list(dict.fromkeys(config.heads.split(",")))
    rows = features.usable()
    classes = [features.classes[label] for label in np.unique(features.labels[rows])]
    if len(classes) < 2:
        raise LabelError(f"{features.path} has {len(classes)} classes with images; probing needs two or more")
    if is_multilabel(classes):
        raise LabelError(
            f"images of {features.path} have several classes (a|b); probing counts images of one. Measure a layer "
            f"with featx fit-svm {features.path} -l LAYER"
        )
    labels = labels_among(classes, features.classes, features.labels, multilabel=False).astype(np.int32)
    plan = plan_of(config, features=features.digest, layers=layers)
    if folder is not None and (folder / REPORT).exists():
        finished = _take_finished(folder, plan)
        reporter.note(ALREADY_THERE)
        return finished
    splits = [
        split_per_class(labels[rows], config.per_class, config.seed + repeat, classes, most=config.test_per_class)
        for repeat in range(config.repeats)
    ]
    found, tested = [], len(splits[0][1])
    if not tested:
        raise LabelError(
            f"{features.path}: no images are left to test on; --per-class {config.per_class} is too many"
        )
    with contextlib.closing(Journal(None if folder is None else folder / JOURNAL, plan)) as journal:
        reporter.begin("probing", len(layers) * len(heads) * len(splits))
        for layer in layers:
            for head in heads:
                outcomes = []
                for repeat, (train, test) in enumerate(splits):
                    outcome = journal.done.get((layer, head, repeat))
                    if outcome is None:
                        values = resident.values(features, layer)
                        outcome = _one(
                            head, features, layer, values, labels, rows[train], rows[test], classes, config
                        )
                        journal.write(layer, head, repeat, outcome)
                    outcomes.append(outcome)
                    reporter.advance(1)
                found.append(_row(layer, head, math.prod(features[layer].shape[1:]), outcomes))
        reporter.end()
    provenance = features.provenance
    report = ProbeReport(
        output=folder,
        title=f"{provenance['backbone']} ({provenance['weights']['name']})",
        heads=heads,
        classes=len(classes),
        per_class=config.per_class,
        test=tested,
        repeats=config.repeats,
        chance=1 / len(classes),
        rows=found,
        seconds=time.perf_counter() - started,
    )
    if folder is not None:
        _save(report, folder, plan)
        (folder / JOURNAL).unlink(missing_ok=True)
    return report


def _row(layer: str, head: str, values: int, outcomes: list[Outcome]) -> ProbeRow:
    accuracies = [outcome[0] for outcome in outcomes]
    return ProbeRow(
        layer,
        head,
        values,
        float(np.mean(accuracies)),
        float(np.std(accuracies)),
        accuracies,
        [outcome[1] for outcome in outcomes],
        sum(outcome[2] for outcome in outcomes),
    )


def _take_finished(folder: Path, plan: dict[str, Any]) -> ProbeReport:
    """The report of a probe that is done, without loading torch.

    Raises:
        PlanMismatch: the folder holds another one.
        FileFormatError: it cannot be read.
    """
    path = folder / REPORT
    try:
        stored = json.loads(path.read_text())
        refuse_other_probe(folder, stored.pop("plan", {}), plan)
        rows = [ProbeRow(**row) for row in stored.pop("rows")]
        report = ProbeReport(output=folder, rows=rows, seconds=0.0, **stored)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if not ((folder / TABLE).exists() and (folder / PICTURE).exists()):
        _save(report, folder, plan)
    return report


def _features_of(
    source: Path, folder: Path | None, config: ProbeConfig, resident: ResidentLayers, reporter: Reporter
) -> tuple[Features, bool]:
    """The features, and whether they were given; else they have just been extracted."""
    if source.is_file() and h5py.is_hdf5(source):
        defaults = ProbeConfig()
        for name in ("backbone", "weights", "pool"):
            if getattr(config, name) != getattr(defaults, name):
                raise UsageError(f"--{name} is for images; {source} holds features that were made already")
        return open_features(source), True
    if folder is None:
        raise FileFormatError(
            f"{source} is no features file. To extract its images first, say where to: featx probe {source} -o FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ExtractConfig(
        backbone=config.backbone, weights=config.weights, layers=config.layers, pool=config.pool, device=config.device
    )
    extract_features(source, folder / "features.h5", wanted, resident=resident, reporter=reporter)
    return open_features(folder / "features.h5"), False


def _layers_of(path: Path, held: list[str], spec: str) -> list[str]:
    """The layers of a file that names, ranges (in the file's order) and globs stand for, in the file's order.

    Raises:
        UnknownLayer: one that the file does not hold.
    """
    if spec == "all":
        return held
    chosen: set[str] = set()
    for word in (word.strip() for word in spec.split(",")):
        first, _, last = word.partition("-")
        if word in held:
            chosen.add(word)
        elif first in held and last in held:
            chosen |= set(held[held.index(first) : held.index(last) + 1])
        elif matching := fnmatch.filter(held, word):
            chosen |= set(matching)
        else:
            raise UnknownLayer(f"{path} holds no layer {word!r}; it holds {', '.join(held)}")
    return [name for name in held if name in chosen]


def _one(
    head: str,
    features: Features,
    layer: str,
    values: Values,
    labels: npt.NDArray[np.int32],
    train: Rows,
    test: Rows,
    classes: list[str],
    config: ProbeConfig,
) -> Outcome:
    """Mean accuracy per class, C, and fits not proven, of one layer, head and split.

    Args:
        values: (N, D) of the layer, in the file or on the device.
        labels: (N,) of all rows of the file, among `classes`.
        train, test: rows of the file.
    """
    from featx.device import choose_device, free_memory
    from featx.heads.on_device import HeadOnDevice
    from featx.heads.search import fit_heads

    device = choose_device(config.device)
    try:
        found = fit_heads(
            head,
            values,
            train,
            labels[train],
            classes,
            c=config.c,
            folds=config.folds,
            seed=config.seed,
            normalize=config.normalize,
            device=device,
            memory_bytes=config.memory or free_memory(device) // 2,
        )
    except NonFiniteRow as error:
        raise damaged_row(features, layer, error) from error
    normalize = "l2" if config.normalize == "l2" else "none"
    fitted = LinearHead(head, found.weights, found.bias, classes, normalize, layer, recipe={})
    if isinstance(values, np.ndarray):
        scores = fitted.scores(values[test])
    else:
        scores = HeadOnDevice(fitted, device).of_rows(values, test)
    metrics = measure(scores, labels[test], classes)
    return metrics.mean_per_class, found.c, len(found.uncertified)


def _save(report: ProbeReport, folder: Path, plan: dict[str, Any]) -> None:
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
    with replacing(folder / REPORT) as partial:
        partial.write_text(json.dumps({**kept, "plan": plan}, indent=1) + "\n")
        draw_layers(partial, folder / PICTURE)
