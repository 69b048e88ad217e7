"""`featx fit-svm` and `featx fit-softmax`: labelled features become a head, and a report on it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.head_file import SHOWN_CONFUSIONS, FitReport, HeadFile
from featx.artifacts.head_rows import kept_together, networks_images, note_on_networks_images, split_rows
from featx.errors import LabelError, NonFiniteRow, UsageError
from featx.extraction.recipe import describe_layer
from featx.extraction.reduction.projection import reduction_of
from featx.heads.calibration import Calibration, calibrate
from featx.heads.excluded import count_excluded
from featx.heads.labels import Labels, classes_of, is_known, is_multilabel, labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.quality.metrics import LabelMetrics, Metrics
from featx.heads.selection.class_weights import class_weights_of, recorded_weights
from featx.heads.selection.scoring import chosen_score
from featx.heads.splits import Rows
from featx.heads.trained_on import count_among, remember, together
from featx.options.heads import FitConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural, printable
from featx.store.open import Paths, open_features, paths_of
from featx.store.reader import Features

if TYPE_CHECKING:
    from featx.heads.selection.search import Found
    from featx.heads.solver.certificate import Uncertified


def fit_svm(
    features: Paths,
    output: str | os.PathLike[str] | None = None,
    config: FitConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fit a linear SVM on a layer of a features file and save it as a head.

    The objective is that of scikit-learn's LinearSVC(loss="squared_hinge"), one class against the rest. The same call
    again does nothing if the head is there.

    Args:
        features: a features file, or several that were made with the same settings, as one.
        output: the head, NAME.safetensors; None to fit and report only.

    Raises:
        PlanMismatch: the output is there and was fitted with other settings.
        LabelError: no labels, one class only, too few images of a class.
        FileFormatError, UnknownLayer: not a features file; it does not hold the layer.
    """
    return _fit("svm", features, output, config or FitConfig(), reporter)


def fit_softmax(
    features: Paths,
    output: str | os.PathLike[str] | None = None,
    config: FitConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fit a softmax (multinomial logistic regression) head; otherwise as `fit_svm`.

    The objective is that of scikit-learn's LogisticRegression(penalty="l2").
    """
    return _fit("softmax", features, output, config or FitConfig(), reporter)


def _fit(
    kind: str, given: Paths, output: str | os.PathLike[str] | None, config: FitConfig, reporter: Reporter
) -> FitReport:
    started = time.perf_counter()
    if kind == "softmax" and config.calibrate != "none":
        raise UsageError("a softmax gives probabilities as it is; --calibrate is for featx fit-svm")
    features = open_features(*paths_of(given))
    layer = features.only_layer(config.layer)
    weighted = recorded_weights(config.class_weight)
    plan = plan_of(config, without=("device", "layer"), kind=kind, features=features.digest, layer=layer)
    plan["request"]["class_weight"] = weighted
    finished = None if output is None else HeadFile(Path(output), reporter).take_finished(plan)
    if finished is not None:
        return finished
    from featx.heads.selection.folds import rare_classes
    from featx.heads.selection.search import fit_heads
    from featx.runtime.device import choose_device
    from featx.runtime.memory import free_memory

    rows = features.usable()
    multilabel = is_multilabel([features.classes[k] for k in np.unique(features.labels[rows])], features.source_kind)
    copies = kept_together(features, rows, config.group_by, near=config.near_duplicates, layer=layer)
    train, test = split_rows(features, rows, copies, config, multilabel)
    if multilabel:
        _refuse_what_needs_one_class(kind, config, features.path)
    classes, labels = _labels_to_train_on(features, train, multilabel)
    values = features[layer].reshape(len(features), -1)
    score = chosen_score(config.score, config.class_weight is not None, multilabel)
    weights = None if multilabel else class_weights_of(config.class_weight, labels[train].astype(np.int32), classes)
    device = choose_device(config.device)
    products = _products(config, features, layer, train)
    try:
        found = fit_heads(
            kind,
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
            keep_scores=config.calibrate != "none",
            copies=copies[np.searchsorted(rows, train)],
            class_weights=weights,
            score=score,
            products=products,
            reporter=reporter,
        )
    except NonFiniteRow as error:
        raise features.damaged_row(layer, error.row) from error
    head = LinearHead(
        kind=kind,
        weights=found.weights,
        bias=found.bias,
        classes=classes,
        normalize="l2" if config.normalize == "l2" else "none",
        layer=layer,
        recipe=describe_layer(features.provenance, layer, features.layers[layer].pooling),
        calibration=_calibrated(found, labels[train], config),
        multilabel=multilabel,
        trained_on=together(remember(features.sha256[train]), networks_images(features)),
        projection=reduction.layers[layer].arrays if (reduction := reduction_of(features)) else {},
    )
    known = test if multilabel else test[labels[test] >= 0]
    metrics = head.measure(values[known], labels[known]) if len(known) else None
    notes = _notes(features, config, classes, metrics, train, known)
    if config.c is None or config.calibrate != "none":
        notes += _rare(rare_classes(labels[train], config.folds, classes), config.folds)
    if products is not None and not any(products.parent.glob(f"{products.name}.*")):
        notes.append(
            "--keep-products has kept nothing: of so many images with so few values, or in so little memory, the "
            "products of the images are not what is computed with"
        )
    report = FitReport(
        output=Path(output) if output is not None else None,
        kind=kind,
        layer=layer,
        values=values.shape[1],
        normalize=config.normalize,
        c=found.c,
        curve=found.curve,
        train=len(train),
        test=len(known),
        left_out=len(features) - len(train) - len(known),
        metrics=metrics,
        gap=found.solution.gap,
        uncertified=[_describe(one, classes, kind) for one in found.uncertified],
        notes=notes,
        seconds=time.perf_counter() - started,
        score=score,
        excluded=_excluded(features, classes, np.concatenate([train, known]), config, multilabel),
    )
    if output is not None:
        kept = {key: value for key, value in report.to_json().items() if key not in ("output", "seconds")}
        object.__setattr__(head, "report", {**kept, "plan": plan})
        head.save(output)
    return report


def _products(config: FitConfig, features: Features, layer: str, train: Rows) -> Path | None:
    """Where the products of the training rows are kept: by what they are of."""
    if config.keep_products is None:
        return None
    of = hashlib.sha256(f"{features.digest} {layer} {config.normalize}".encode())
    of.update(train.astype(np.int64).tobytes())
    return Path(config.keep_products) / of.hexdigest()[:32]


def _calibrated(found: Found, labels: Labels, config: FitConfig) -> Calibration | None:
    if found.held_out_scores is None:
        return None
    known = ~np.isnan(found.held_out_scores).any(axis=1)  # a class's only image is held out by no fold
    return calibrate(config.calibrate, found.held_out_scores[known], labels[known].astype(np.int32))


def _rare(names: list[str], folds: int) -> list[str]:
    if not names:
        return []
    shown = ", ".join(printable(name) for name in names[:SHOWN_CONFUSIONS])
    return [
        f"{plural(len(names), 'class', 'classes')} with fewer images to train on than --folds {folds}: not every "
        f"fold tests on {shown}"
    ]


def _describe(one: Uncertified, classes: list[str], kind: str) -> str:
    name = f"class {printable(classes[one.problem])} " if kind == "svm" and len(classes) > 2 else ""
    where = "" if one.fold is None else f" in fold {one.fold + 1}"
    return f"{name}at C = {one.c:g}{where} ({one.gap:.0e})"


def _excluded(
    features: Features, classes: list[str], taken: Rows, config: FitConfig, multilabel: bool
) -> dict[str, int]:
    """The images that neither train nor test, by reason."""
    labels = labels_among(classes, features.classes, features.labels, multilabel)
    known = is_known(labels)
    used = np.ones(len(features), bool)
    if config.split_column:
        used = np.isin(features.split_of, np.unique(features.split_of[taken]))
    return count_excluded(features.status, features.labels, features.classes, taken, known=known, in_split=used)


def _notes(
    features: Features,
    config: FitConfig,
    classes: list[str],
    metrics: Metrics | LabelMetrics | None,
    train: Rows,
    test: Rows,
) -> list[str]:
    """What a reader of the accuracy should know."""
    notes = [note.removeprefix("note: ") for note in notes_on(config, Facts())]
    if not len(test) and config.test != 0:
        notes.append(
            f"nothing was tested: of {plural(len(train), 'image')} of {plural(len(classes), 'class', 'classes')} "
            f"{'--split-column' if config.split_column else '--test'} holds out none"
        )
    copied = count_among(features.sha256[test], remember(features.sha256[train])) if len(test) else 0
    if copied:
        notes.append(
            f"{plural(copied, 'test image')} {'is a copy' if copied == 1 else 'are copies'} of training images, "
            f"as the file's own splits have it: the accuracy is too high"
        )
    if (seen := note_on_networks_images(features, test)) is not None:
        notes.append(seen)
    if features.splits and not config.split_column:
        notes.append(
            f"the file has splits ({', '.join(map(printable, features.splits))}) that were not used: images of "
            f"all of them were mixed. --split-column trains on one and tests on the other"
        )
    untested = [name for name in classes if metrics and metrics.per_class[name] is None]
    if untested:
        shown = ", ".join(printable(name) for name in untested[:SHOWN_CONFUSIONS])
        notes.append(f"{plural(len(untested), 'class', 'classes')} with too few images to be tested: {shown}")
    return notes


def _refuse_what_needs_one_class(kind: str, config: FitConfig, path: Path) -> None:
    found = f"images of {path} have several classes (a|b)"
    if kind == "softmax":
        raise LabelError(f"{found}; a softmax gives each image one. Every class against the rest: featx fit-svm")
    if config.class_weight is not None:
        raise UsageError(f"{found}; --class-weight is for one class per image")
    if config.score not in (None, "ap"):
        raise UsageError(f"{found}; C is chosen by the mean average precision: leave out --score {config.score}")
    if config.calibrate != "none":
        raise UsageError(f"{found}; --calibrate makes probabilities of one class per image")
    if config.per_class is not None:
        raise UsageError(f"{found}; --per-class is for one class per image; --test 20% for several")


def _labels_to_train_on(features: Features, train: Rows, multilabel: bool) -> tuple[list[str], Labels]:
    """The classes that have training rows, and the labels of all rows among them.

    Raises:
        LabelError: there is only one of them.
    """
    names = [features.classes[label] for label in np.unique(features.labels[train])]
    classes = classes_of(names, multilabel=multilabel)
    if len(classes) < 2:
        named = ", ".join(map(repr, classes)) or "none"
        raise LabelError(f"{features.path}: a head needs at least two classes to tell apart; to train on: {named}")
    return classes, labels_among(classes, features.classes, features.labels, multilabel)
