"""`featx probe`: which layer transfers best? Every layer, both heads, repeated splits."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.head_rows import kept_together, note_on_networks_images
from featx.artifacts.journal import JOURNAL, Journal, Outcome
from featx.artifacts.probe_folder import CurvePoint, ProbeFolder, ProbeReport, ProbeRow, save_probe
from featx.errors import FileFormatError, LabelError, NonFiniteRow, UsageError
from featx.extraction.gpu.device_cache import DeviceCache
from featx.heads.baselines import baseline_scores
from featx.heads.labels import is_multilabel, labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.quality.metrics import measure
from featx.heads.splits import Rows, copies_of, first_of_class, split_per_class
from featx.options.extraction import ExtractConfig
from featx.options.heads import BASELINES, ProbeConfig, parse_counts
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural
from featx.store.open import Paths, named_layers, open_features, paths_of
from featx.store.reader import Features

if TYPE_CHECKING:
    from featx.heads.solver.linear_algebra.readers import Values


def probe_layers(
    source: Paths,
    output: str | os.PathLike[str] | None = None,
    config: ProbeConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ProbeReport:
    """Measure how well each layer of a features file separates the classes.

    The same call again resumes where an interrupted one stopped, or does nothing if all is there.

    Args:
        source: a features file, or several as one; or images (folder, list, CSV, zip), whose layers are extracted
            into the output folder first.
        output: a folder for probe.json, probe.csv and probe.png; None to report only.

    Raises:
        PlanMismatch: the folder holds another probe.
        LabelError: no labels, or classes with too few images.
        FileFormatError: images as source but no output folder; damaged features.
    """
    started = time.perf_counter()
    config = config or ProbeConfig()
    folder = None if output is None else Path(output)
    cache = DeviceCache()
    features, given = _features_of(paths_of(source), folder, config, cache, reporter)
    layers = named_layers(features, config.layers if given else "all")
    heads = list(dict.fromkeys(config.heads.split(",")))
    rows = features.usable()
    classes = [features.classes[label] for label in np.unique(features.labels[rows])]
    if len(classes) < 2:
        raise LabelError(
            f"{features.path} has {plural(len(classes), 'class', 'classes')} with images; probing needs two or more"
        )
    if is_multilabel(classes, features.source_kind):
        raise LabelError(
            f"images of {features.path} have several classes (a|b); probing counts images of one. Measure a layer "
            f"with featx fit-svm {features.path} -l LAYER"
        )
    labels = labels_among(classes, features.classes, features.labels, multilabel=False).astype(np.int32)
    plan = plan_of(config, without=("device", "layers"), features=features.digest, layers=layers)
    finished = None if folder is None else ProbeFolder(folder, reporter).take_finished(plan)
    if finished is not None:
        return finished
    reporter.notes(notes_on(config, Facts()))
    splits = _splits(features, rows, labels, classes, config, reporter)
    found, tested, curve = [], len(splits[0][1]), list[CurvePoint]()
    with contextlib.closing(Journal(None if folder is None else folder / JOURNAL, plan)) as journal:
        counts = () if config.curve is None else parse_counts(config.curve)
        reporter.begin("probing", len(layers) * len(heads) * len(splits) * (1 + len(counts)))
        for layer in layers:
            for head in heads:
                outcomes: dict[int, list[Outcome]] = {count: [] for count in (0, *counts)}
                for count, (repeat, (whole, test)) in itertools.product(outcomes, enumerate(splits)):
                    outcome = journal.done.get((layer, head, repeat, count))
                    train = whole if not count else first_of_class(whole, labels[rows], count, config.seed + repeat)
                    if outcome is None:
                        values = cache.values(features, layer)
                        asked = config
                        if count and config.c is None and count < config.folds:  # too few to cross-validate
                            asked = replace(config, c=outcomes[0][repeat][1])
                        outcome = _one(head, features, layer, values, labels, rows[train], rows[test], classes, asked)
                        journal.write(layer, head, repeat, outcome, count)
                    outcomes[count].append(outcome)
                    reporter.advance(1)
                found.append(_row(layer, head, math.prod(features[layer].shape[1:]), outcomes.pop(0)))
                curve += [_point(layer, head, count, of) for count, of in outcomes.items()]
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
        curve=curve,
    )
    if folder is not None:
        save_probe(report, folder, plan)
        (folder / JOURNAL).unlink(missing_ok=True)
    return report


def _splits(
    features: Features,
    rows: Rows,
    labels: npt.NDArray[np.int32],
    classes: list[str],
    config: ProbeConfig,
    reporter: Reporter,
) -> list[tuple[Rows, Rows]]:
    """What trains and what tests in each repeat: positions in `rows`.

    Raises:
        LabelError: a class has too few images.
    """
    copies, groups = copies_of(features.sha256[rows]), kept_together(features, rows)
    splits = [
        split_per_class(
            labels[rows], config.per_class, config.seed + repeat, classes, config.test_per_class, copies, groups
        )
        for repeat in range(config.repeats)
    ]
    tested = len(splits[0][1])
    for _, test in splits:
        empty = [classes[label] for label in range(len(classes)) if label not in labels[rows][test]]
        if tested and empty:
            raise LabelError(
                f"{features.path}: no images of class {empty[0]!r} are left to test on, of what belongs together; "
                f"--per-class {config.per_class} is too many"
            )
    if not tested:
        raise LabelError(
            f"{features.path}: no images are left to test on; --per-class {config.per_class} is too many"
        )
    tests = rows[np.unique(np.concatenate([test for _, test in splits]))]
    if (seen := note_on_networks_images(features, tests)) is not None:
        reporter.note(f"note: {seen}")
    return splits


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


def _point(layer: str, head: str, count: int, outcomes: list[Outcome]) -> CurvePoint:
    accuracies = [outcome[0] for outcome in outcomes]
    return CurvePoint(layer, head, count, float(np.mean(accuracies)), float(np.std(accuracies)))


def _in_memory(values: Values, rows: Rows) -> npt.NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values[rows]
    import torch

    return values[torch.from_numpy(rows).to(values.device)].cpu().numpy()


def _features_of(
    sources: list[Path], folder: Path | None, config: ProbeConfig, cache: DeviceCache, reporter: Reporter
) -> tuple[Features, bool]:
    """The features, and whether they were given; else they have just been extracted."""
    source = sources[0]
    if len(sources) > 1 or (source.is_file() and h5py.is_hdf5(source)):
        defaults = ProbeConfig()
        for name in ("backbone", "weights", "preprocess", "pool", "dense"):
            if getattr(config, name) != getattr(defaults, name):
                raise UsageError(f"--{name} is for images; {source} holds features that were made already")
        return open_features(*sources), True
    if folder is None:
        raise FileFormatError(
            f"{source} is no features file. To extract its images first, say where to: featx probe {source} -o FOLDER"
        )
    from featx.extraction.job import extract

    folder.mkdir(parents=True, exist_ok=True)
    wanted = ExtractConfig(
        backbone=config.backbone,
        weights=config.weights,
        preprocess=config.preprocess,
        layers=config.layers,
        pool=config.pool,
        dense=config.dense,
        device=config.device,
    )
    return extract(source, folder / "features.h5", wanted, cache=cache, reporter=reporter), False


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
    from featx.heads.device_head import HeadOnDevice
    from featx.heads.selection.search import fit_heads
    from featx.runtime.device import choose_device
    from featx.runtime.memory import free_memory

    if head in BASELINES:
        learnt, asked = (_in_memory(values, of) for of in (train, test))
        for of, held in ((train, learnt), (test, asked)):
            if not np.isfinite(held).all():
                raise features.damaged_row(layer, int(of[int((~np.isfinite(held).all(axis=1)).argmax())]))
        scores, parameter = baseline_scores(head, learnt, labels[train], asked, config.normalize, len(classes))
        return measure(scores, labels[test], classes).mean_per_class, parameter, 0
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
        raise features.damaged_row(layer, error.row) from error
    normalize = "l2" if config.normalize == "l2" else "none"
    fitted = LinearHead(head, found.weights, found.bias, classes, normalize, layer, recipe={})
    if isinstance(values, np.ndarray):
        scores = fitted.scores(values[test])
    else:
        scores = HeadOnDevice(fitted, device).of_rows(values, test)
    metrics = measure(scores, labels[test], classes)
    return metrics.mean_per_class, found.c, len(found.uncertified)
