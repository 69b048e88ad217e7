"""`featx verify` of a head or a fine-tuned network: is it whole, and are its numbers those that its report says?"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.finetuned_run import FinetunedRun
from featx.artifacts.head_file import HeadFile, plan_in
from featx.artifacts.head_rows import measure_again
from featx.errors import FileFormatError, VerificationFailed
from featx.extraction.model import load_model
from featx.extraction.scoring import score_images
from featx.heads.linear_head import LinearHead
from featx.heads.quality.measures import measured, quality
from featx.images.sources.scan import scan
from featx.networks.run_folder import read_run
from featx.options.extraction import PredictConfig, VerifyConfig
from featx.options.heads import FitConfig
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Reporter
from featx.runtime.report import Report
from featx.store.open import open_features
from featx.store.self_check import SelfCheck
from featx.training.task import plan_task, undivided

_ROUNDING = 1e-12


@dataclass(frozen=True)
class ModelReport(Report):
    """What was checked of a head or run."""

    path: Path
    checks: list[SelfCheck]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        return [f"{self.path}: {check.name}: {check.found or 'ok'}" for check in self.checks]


def verify_head(path: Path, config: VerifyConfig, reporter: Reporter) -> ModelReport:
    """Load a head, which compares it with its hash, and measure it again if `config.source` names its features.

    Raises:
        VerificationFailed: the measure is another than its report's.
        FileFormatError: it is damaged.
    """
    head = LinearHead.load(path)
    HeadFile(path, reporter).read()
    checks = [SelfCheck("contents, hash and report")]
    if config.source is not None:
        checks.append(_measured_again(head, Path(config.source)))
    else:
        reporter.note("note: --source FEATURES measures the head again on the rows that it was tested on")
    return _finished(ModelReport(path, checks))


def _measured_again(head: LinearHead, source: Path) -> SelfCheck:
    features = open_features(source)
    plan = plan_in(head.report)
    if plan.get("features") != features.digest:
        return SelfCheck("metrics", f"{source} does not hold the features it was fitted on")
    names = {spec.name for spec in fields(FitConfig)}
    request = plan.get("request")
    asked = {k: v for k, v in request.items() if k in names} if isinstance(request, dict) else {}
    found = measure_again(head, features, FitConfig(**asked))
    now = None if found is None else found.to_json() if isinstance(found, Report) else vars(found)
    return SelfCheck("metrics", _difference(head.report.get("metrics"), now))


def verify_run(folder: Path, config: VerifyConfig, reporter: Reporter) -> ModelReport:
    """Load a run, which compares its weights with their hash, and validate it again on `config.source`, its images.

    Raises:
        VerificationFailed: the measure is another than its report's.
        FileFormatError, WeightsMismatch: it is damaged or not finished.
    """
    run = read_run(folder)
    run.refuse_unfinished()
    stored = FinetunedRun(folder, reporter).read()
    if stored is None or stored.result is None:
        raise FileFormatError(f"{folder} has no report")
    model = load_model(folder)
    model.engine(model.recipe(device="cpu", batch_size=None, decode="cpu"), reporter).close()
    checks = [SelfCheck("description, weights, hash and report")]
    if config.source is None:
        reporter.note("note: --source IMAGES validates it again on the images that it was validated on")
        return _finished(ModelReport(folder, checks))
    manifest = scan(config.source)
    names = {spec.name for spec in fields(FinetuneConfig)}
    request: dict[str, Any] = {k: v for k, v in run.plan["request"].items() if k in names}
    asked = FinetuneConfig(**request)
    if manifest.digest != run.plan.get("images"):
        checks.append(SelfCheck("metrics", f"{config.source} does not hold the images it was trained on"))
        return _finished(ModelReport(folder, checks))
    copies = undivided(manifest, asked.group_by, reporter=reporter)
    task = plan_task(
        manifest, val=asked.val, split_column=asked.split_column, seed=asked.seed, copies=copies,
        values=asked.task == "values",
    )  # fmt: skip
    if stored.result.metrics is not None:
        scored = score_images(model, manifest.part(task.val.tolist()), PredictConfig(max_bad=1.0), reporter)
        good = np.array([row not in scored.errors for row in range(len(task.val))])
        now = measured(model.rule, scored.scores[good], task.labels[task.val][good])
        (what, value), (_, said) = quality(now), quality(stored.result.metrics)
        # Another device's rounding can turn an image or two.
        same = now.images == stored.result.metrics.images and abs(value - said) <= 1.5 / max(1, now.images)
        found = f"{what} {value:.4f} of {now.images}, the report says {said:.4f}"
        checks.append(SelfCheck("metrics", "" if same else found))
    return _finished(ModelReport(folder, checks))


def _difference(said: Any, now: Any) -> str:
    if said is None or now is None:
        return "" if said == now else "the report has none, or nothing is left to measure on"
    for key, value in now.items():
        old = said.get(key)
        numbers = isinstance(value, float) and isinstance(old, int | float)
        if not (abs(old - value) <= _ROUNDING if numbers else old == value):
            return f"{key} is {value}, the report says {old}"
    return ""


def _finished(report: ModelReport) -> ModelReport:
    if not report.passed:
        raise VerificationFailed(f"{report.path} is not what it says it is\n{report}")
    return report
