"""`featx evaluate`: how good is a head on labelled features it has not seen?"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx import __version__
from featx.atomic import disk_errors, is_hdf5, refuse_special_file, replacing
from featx.config import EvaluateConfig, PredictConfig
from featx.errors import LabelError, PlanMismatch, TooManyBadImages, UsageError
from featx.heads.labels import labels_among
from featx.heads.linear import LinearHead
from featx.heads.metrics import LabelMetrics, Metrics, measure, metric_lines
from featx.images.contents import refuse_other_files
from featx.images.scan import Manifest, scan
from featx.networks.runs import Run, is_run, read_run
from featx.predict import digest_of, layer_for, refuse_too_many_bad, run_outputs
from featx.progress import ALREADY_THERE, SILENT, Reporter
from featx.report import Report
from featx.scores import KeptScores
from featx.store.reader import Features, open_features
from featx.store.schema import differences

FORMAT = "featx evaluation"


@dataclass(frozen=True)
class EvaluateReport(Report):
    """A head's quality on a features file; `left_out` are unlabelled, failed or of classes it does not know."""

    head: Path
    features: Path
    kind: str
    layer: str
    images: int
    left_out: int
    metrics: Metrics | LabelMetrics

    def lines(self) -> list[str]:
        left_out = f", {self.left_out:,} left out" if self.left_out else ""
        return [
            f"{self.head} ({self.kind} on {self.layer}) on {self.images:,} images of {self.features}{left_out}",
            *metric_lines(self.metrics),
        ]


def evaluate_head(
    head: str | os.PathLike[str],
    features: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    reporter: Reporter = SILENT,
) -> EvaluateReport:
    """Score the labelled rows of a features file with a head, or labelled images with a fine-tuned network.

    Args:
        head: a head, or the folder of a fine-tuned network.
        features: a features file; for a fine-tuned network images, as for `extract_features`.
        output: where the report is kept as JSON. The same call again then reads it, or goes on where an interrupted
            one has stopped.

    Raises:
        FeaturesMismatch: the file holds other features than the head takes.
        LabelError: no labelled image of a class the head knows.
        PlanMismatch: the output is there and is the report of another evaluation.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        Interrupted: a signal came.
    """
    config, model = config or EvaluateConfig(), read_run(head) if is_run(str(head)) else LinearHead.load(head)
    given = scan(features, follow_links=config.follow_links) if isinstance(model, Run) else open_features(features)
    digest = digest_of(head, model)
    plan: dict[str, Any] = {"head": digest, "images": given.digest, "split": config.split, "featx": __version__}
    asked = PredictConfig(
        device=config.device, batch_size=config.batch_size, workers=config.workers, max_bad=config.max_bad
    )
    scores = None
    if isinstance(given, Manifest):
        plan["batch_size"] = config.batch_size
        scores = None if output is None else KeptScores(Path(output), digest, asked, reporter)
    if output is not None:
        found = _take_finished(Path(output), plan)
        if found is not None:
            finished, files = found
            if isinstance(model, Run) and isinstance(given, Manifest):
                refuse_other_files(str(output), files, _wanted(model, given, config.split), reporter=reporter)
            if scores is not None:
                scores.discard()  # left there if the run was killed at its very end
            reporter.note(ALREADY_THERE)
            return finished
    if isinstance(model, Run):
        assert isinstance(given, Manifest)
        report = _evaluate_run(model, given, config.split, asked, reporter, scores)
    else:
        assert isinstance(given, Features)
        report = _evaluate_head(model, Path(head), given, config.split, reporter)
    if output is not None:
        kept = {"format": FORMAT, "plan": plan, "report": report.to_json(), "files": scores.files if scores else {}}
        text = json.dumps(kept, indent=1)
        with replacing(Path(output)) as partial:
            partial.write_text(f"{text}\n")
    if scores is not None:
        scores.discard()
    return report


def _take_finished(output: Path, plan: dict[str, Any]) -> tuple[EvaluateReport, object] | None:
    """The report that is there already and the record of its images; None if there is none.

    Raises:
        UsageError: there is something else.
        PlanMismatch: it is that of another evaluation.
    """
    with disk_errors(output):
        if not os.path.lexists(output):
            return None
        refuse_special_file(output)
        text = b"" if is_hdf5(output) else output.read_bytes()
    try:
        found = json.loads(text)
        stored, report = dict(found["plan"]), dict(found["report"])
        is_ours = found["format"] == FORMAT
        kind = LabelMetrics if "mean_average_precision" in report["metrics"] else Metrics
        report["metrics"] = kind(**report["metrics"])
        report["head"], report["features"] = Path(report["head"]), Path(report["features"])
        finished = EvaluateReport(**report)
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UsageError(f"{output} is there and is no report of featx evaluate; choose another name with -o")
    changed = differences(stored, plan)
    if changed:
        raise PlanMismatch(
            f"{output} is the report of another evaluation: {'; '.join(changed[:3])}. Choose another name with -o, "
            f"or delete it"
        )
    return finished, found.get("files")


def _evaluate_head(
    loaded: LinearHead, head: Path, opened: Features, split: str | None, reporter: Reporter
) -> EvaluateReport:
    layer = layer_for(loaded, opened)
    if split is None and dict(loaded.report.get("plan", {})).get("features") == opened.digest:
        reporter.note(
            f"note: {head} was fitted on images of this very file, and they are among those that are scored; what it "
            f"does on images it has not seen is in the fit's own report, which the same fit command prints again"
        )
    rows = opened.usable(split)
    labels = labels_among(loaded.classes, opened.classes, opened.labels[rows], loaded.multilabel)
    known = labels.any(axis=1) if loaded.multilabel else labels >= 0
    rows, labels = rows[known], labels[known]
    if not len(rows):
        raise LabelError(
            f"{opened.path} has no image of the classes the head knows ({', '.join(map(repr, loaded.classes[:5]))})"
        )
    values = opened[layer].reshape(len(opened), -1)
    return EvaluateReport(
        head=head,
        features=opened.path,
        kind=loaded.kind,
        layer=layer,
        images=len(rows),
        left_out=len(opened) - len(rows),
        metrics=loaded.measure(values[rows], labels),
    )


def _evaluate_run(
    run: Run,
    manifest: Manifest,
    split: str | None,
    config: PredictConfig,
    reporter: Reporter,
    scores: KeptScores | None,
) -> EvaluateReport:
    from featx.networks.names import PROB

    source, wanted = Path(manifest.source), _wanted(run, manifest, split)
    labels = labels_among(run.classes, list(manifest.classes), np.array(wanted.labels), multilabel=False)
    paths, outputs, errors = run_outputs(run, wanted, config, reporter, scores)
    refuse_too_many_bad(errors, paths, config.max_bad)
    good = np.array([row not in errors for row in range(len(wanted))])
    if not good.any():
        raise TooManyBadImages(f"none of the {len(wanted)} images of {source} could be read: {errors[min(errors)]}")
    return EvaluateReport(
        head=run.folder,
        features=source,
        kind="network",
        layer=PROB,
        images=int(good.sum()),
        left_out=len(manifest) - int(good.sum()),
        metrics=measure(outputs[good], labels[good].astype(np.int64), run.classes),
    )


def _wanted(run: Run, manifest: Manifest, split: str | None) -> Manifest:
    """The images of a split, or of all, whose classes the network knows."""
    source, wanted = manifest.source, np.ones(len(manifest), bool)
    if split is not None:
        if split not in manifest.splits:
            have = ", ".join(manifest.splits) or "none"
            raise LabelError(f"{source} has no split {split!r}; its splits: {have}")
        wanted = np.array(manifest.split_of) == manifest.splits.index(split)
    labels = labels_among(run.classes, list(manifest.classes), np.array(manifest.labels), multilabel=False)
    rows = np.flatnonzero(wanted & (labels >= 0))
    if not len(rows):
        raise LabelError(f"{source} has no image of the classes of {run.folder} ({', '.join(run.classes[:5])}, ...)")
    return manifest.part(rows.tolist())
