"""`featx evaluate`: how good is a head on labelled features it has not seen?"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx import __version__
from featx.artifacts.artifact import write_json
from featx.artifacts.evaluation import FORMAT, EvaluateReport, Evaluation, Scored
from featx.artifacts.head_file import plan_in
from featx.errors import LabelError, TooManyBadImages, UsageError
from featx.extraction.model import LOGITS, Model, layer_for, load_model
from featx.extraction.scoring import StoredScores, score_images
from featx.heads.excluded import count_excluded
from featx.heads.labels import is_known, labels_among, values_among
from featx.heads.linear_head import LinearHead
from featx.heads.quality.measures import detailed, measured
from featx.heads.trained_on import count_among
from featx.images.manifest import Manifest
from featx.images.sources.remote import place_of
from featx.images.sources.reopen import SourceImages
from featx.images.sources.scan import scan
from featx.networks.layer_names import PROB
from featx.networks.run_folder import trained_on
from featx.options.extraction import EvaluateConfig, PredictConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.files import is_hdf5, replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural
from featx.status import Status
from featx.store.open import Paths, open_features, paths_of
from featx.store.reader import Features


def evaluate_head(
    head: str | os.PathLike[str],
    features: Paths,
    config: EvaluateConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    reporter: Reporter = SILENT,
) -> EvaluateReport:
    """Score the labelled rows of a features file with a head, or labelled images with a head or a fine-tuned network.

    Args:
        head: a head, or the folder of a fine-tuned network.
        features: a features file, or several as one; or images, as for `extract_features`, whose features are made
            as the head's were.
        output: where the report is kept as JSON. The same call again then reads it, or resumes where an interrupted
            one has stopped. NAME.html is a page beside it: confusion, classes, curves, the worst mistakes.

    Raises:
        FeaturesMismatch: the file holds other features than the head takes.
        LabelError: no labelled image of a class the head knows.
        PlanMismatch: the output is there and is the report of another evaluation.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        Interrupted: a signal came.
    """
    config, model = config or EvaluateConfig(), load_model(head)
    if config.lesion is None:
        return _evaluate(model, features, config, output, reporter)
    if model.run is None:
        raise UsageError(f"--lesion is for a fine-tuned network; {head} is a head")
    from featx.networks.lesion import lesioned_run

    model.run.refuse_unfinished()
    with tempfile.TemporaryDirectory() as folder:
        silent = lesioned_run(model.run, config.lesion, config.seed, Path(folder))
        return _evaluate(Model(silent.folder, run=silent), features, config, output, reporter, head=model.path)


def _evaluate(
    model: Model,
    features: Paths,
    config: EvaluateConfig,
    output: str | os.PathLike[str] | None,
    reporter: Reporter,
    head: str | os.PathLike[str] | None = None,
) -> EvaluateReport:
    """Evaluate a model, which is called `head` in the report if it is a copy."""
    head = model.path if head is None else Path(head)
    page = Path(output) if output is not None and Path(output).suffix.lower() in (".html", ".htm") else None
    if page is not None:
        from featx.reporting.page import refuse_foreign_page

        refuse_foreign_page(page)
        output = page.with_suffix(".json")
    drawn = page is None or page.exists()
    kept = None if output is None else Evaluation(Path(output), reporter if drawn else SILENT)
    stored: StoredScores | None = None
    given = paths_of(features)
    if len(given) > 1 and model.head is None:
        raise UsageError(f"{model.path} is a whole network and takes images of one source, not {len(given)} files")
    first = given[0]
    if len(given) > 1 or (model.head is not None and (first.suffix.lower() in (".h5", ".hdf5") or is_hdf5(first))):
        opened = open_features(*given)
        reporter.notes(notes_on(config, Facts(source_kind=None, model=model.kind)))
        plan = _plan(model, opened.digest, config)
        finished = None if kept is None else kept.take_finished(plan)
        if finished is not None and drawn:
            return finished
        assert model.head is not None
        report, scored = _evaluate_head(model.head, Path(head), opened, config, reporter)
        files: dict[str, str] = {}
    else:
        manifest = scan(first, follow_links=config.follow_links)
        reporter.notes(notes_on(config, Facts(source_kind=manifest.kind, model=model.kind)))
        plan = _plan(model, manifest.digest, config) | {"batch_size": config.batch_size}
        asked = PredictConfig(
            device=config.device, batch_size=config.batch_size, workers=config.workers, max_bad=config.max_bad
        )
        stored = None if kept is None else StoredScores(kept.path, model, asked, reporter)
        finished = (
            None
            if kept is None
            else kept.take_finished(plan, lambda: manifest.part(_wanted(model, manifest, config.split).tolist()))
        )
        if finished is not None and drawn:
            if stored is not None:
                stored.discard()  # left there if the run was killed at its very end
            return finished
        wanted = _wanted(model, manifest, config.split)
        report, scored, files = _evaluate_images(model, manifest, wanted, asked, config, reporter, stored)
        report = replace(report, head=head, lesion=config.lesion or "")
    if page is not None:
        from featx.reporting.of_evaluation import evaluation_page

        with replacing(page) as partial:
            partial.write_text(evaluation_page(report, scored), encoding="utf-8")
        reporter.note(f"{page}: open it in a browser")
    if kept is not None:
        write_json(kept.path, {"format": FORMAT, "plan": plan, "report": report.to_json(), "files": files})
        if stored is not None:
            stored.discard()
    return report


def _plan(model: Model, images: str, config: EvaluateConfig) -> dict[str, Any]:
    lesion = {} if config.lesion is None else {"lesion": config.lesion, "seed": config.seed}
    asked = {"split": config.split, "bootstrap": config.bootstrap}
    return {"head": model.digest, "images": images, **asked, "featx": __version__, **lesion}


def _evaluate_head(
    loaded: LinearHead, head: Path, opened: Features, config: EvaluateConfig, reporter: Reporter
) -> tuple[EvaluateReport, Scored]:
    split = config.split
    layer = layer_for(loaded, opened)
    same_file = split is None and plan_in(loaded.report).get("features") == opened.digest
    if same_file and loaded.trained_on is None:
        reporter.note(f"note: {head} was fitted on images of this very file; they are among those that are scored")
    usable = opened.usable(split)
    labels = labels_among(loaded.classes, opened.classes, opened.labels, loaded.multilabel)
    known = is_known(labels)
    rows = usable[known[usable]]
    labels = labels[rows]
    if not len(rows):
        raise LabelError(
            f"{opened.path} has no image of the classes the head knows ({', '.join(map(repr, loaded.classes[:5]))})"
        )
    scores = loaded.scores(opened[layer].reshape(len(opened), -1)[rows])
    report = EvaluateReport(
        head=head,
        features=opened.path,
        kind=loaded.kind,
        layer=layer,
        images=len(rows),
        left_out=len(opened) - len(rows),
        metrics=loaded.measure_scores(scores, labels),
        measures=detailed(loaded.rule, scores, labels, config.bootstrap),
        excluded=count_excluded(
            opened.status, opened.labels, opened.classes, rows, known=known,
            in_split=None if split is None else opened.split_of == opened.splits.index(split),
        ),
        trained_on=count_among(opened.sha256[rows], loaded.trained_on),
    )  # fmt: skip
    source = SourceImages(opened.provenance["source"])
    paths = [opened.raw_paths[row] for row in rows.tolist()]
    hashes = opened.sha256[rows]
    outputs = loaded.rule.outputs(scores)
    return report, Scored(
        scores, outputs, labels, paths, lambda place: source.content(paths[place], hashes[place].tobytes())
    )


def _evaluate_images(
    model: Model,
    manifest: Manifest,
    rows: npt.NDArray[np.intp],
    asked: PredictConfig,
    config: EvaluateConfig,
    reporter: Reporter,
    stored: StoredScores | None,
) -> tuple[EvaluateReport, Scored, dict[str, str]]:
    source, classes, split = Path(manifest.source), list(manifest.classes), config.split
    labels, known = _labels_for(model, classes, np.array(manifest.labels), str(source))
    wanted = manifest.part(rows.tolist())
    scored = score_images(model, wanted, asked, reporter) if stored is None else stored.of_images(wanted)
    scored.refuse_too_many_bad(config.max_bad)
    good = np.array([row not in scored.errors for row in range(len(rows))])
    if not good.any():
        first = scored.errors[min(scored.errors)]
        raise TooManyBadImages(f"none of the {plural(len(rows), 'image')} of {source} could be read: {first}")
    status = np.full(len(manifest), Status.DONE, np.uint8)
    status[rows[~good]] = Status.DAMAGED
    report = EvaluateReport(
        head=model.path,
        features=source,
        kind="network" if model.head is None else model.head.kind,
        layer=_layer(model),
        images=int(good.sum()),
        left_out=len(manifest) - int(good.sum()),
        metrics=measured(model.rule, scored.scores[good], labels[rows[good]]),
        measures=detailed(model.rule, scored.scores[good], labels[rows[good]], config.bootstrap),
        excluded=count_excluded(
            status, np.array(manifest.labels), classes, rows[good], known=known,
            in_split=None if split is None else np.array(manifest.split_of) == manifest.splits.index(split),
        ),
        trained_on=count_among(scored.sha256[good], _trained_on(model)),
    )  # fmt: skip
    pictures = SourceImages({"path": place_of(manifest.source), "kind": manifest.kind})
    paths = [wanted.paths[place] for place in np.flatnonzero(good).tolist()]
    scores = scored.scores[good]
    shown = Scored(
        scores, model.rule.outputs(scores), labels[rows[good]], paths, lambda place: pictures.content(paths[place])
    )
    return report, shown, scored.images


def _layer(model: Model) -> str:
    """What is scored: of a network its probabilities, or its logits or numbers where it has none of one class."""
    if model.head is not None:
        return model.head.layer
    return PROB if model.rule.kind == "softmax" else LOGITS


def _labels_for(
    model: Model, names: list[str], labels: npt.NDArray[np.integer], where: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Labels as the model has them, and which of them it knows."""
    if model.rule.kind == "value":
        values = values_among(names, labels, where)
        if values.shape[1] != len(model.classes):
            raise LabelError(
                f"{where}: labels are {values.shape[1]} numbers, and {model.path} predicts {len(model.classes)}"
            )
        return values, np.asarray(np.isfinite(values).all(axis=1))
    among = labels_among(model.classes, names, labels, model.rule.multilabel)
    return among, is_known(among)


def _trained_on(model: Model) -> npt.NDArray[np.uint8] | None:
    if model.head is not None:
        return model.head.trained_on
    return None if model.run is None else trained_on(model.run.folder)


def _wanted(model: Model, manifest: Manifest, split: str | None) -> npt.NDArray[np.intp]:
    """The images of a split, or of all, whose classes the network knows."""
    source, wanted = manifest.source, np.ones(len(manifest), bool)
    if split is not None:
        if split not in manifest.splits:
            have = ", ".join(manifest.splits) or "none"
            raise LabelError(f"{source} has no split {split!r}; its splits: {have}")
        wanted = np.array(manifest.split_of) == manifest.splits.index(split)
    _, known = _labels_for(model, list(manifest.classes), np.array(manifest.labels), str(source))
    rows = np.flatnonzero(wanted & known)
    if not len(rows):
        raise LabelError(
            f"{source} has no image of the classes of {model.path} ({', '.join(model.classes[:5])}, ...)"
        )
    return rows
