"""The folder of a fine-tuning run as an output."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.artifacts.artifact import Artifact, Stored, refuse_foreign_files
from featx.errors import PlanMismatch
from featx.heads.quality.metrics import AnyMetrics, LabelMetrics, ValueMetrics, metric_lines, read_metrics
from featx.heads.selection.class_weights import recorded_weights
from featx.networks.external.code import code_of, is_code
from featx.networks.run_folder import DESCRIPTION, REPORT, TRAINED_ON, WEIGHTS, is_run, read_run
from featx.networks.weights_file import weights_file
from featx.options.training import FinetuneConfig
from featx.runtime.files import sha256_of_file
from featx.runtime.report import Report
from featx.runtime.stored import build, read_json_file
from featx.runtime.text import format_duration, plural, table


@dataclass(frozen=True)
class LayerChange(Report):
    """How a layer was trained, and how far its weights have come: |w - start| / |start|.

    Attributes:
        rate: of its weights; of its biases where these alone were trained.
    """

    layer: str
    parameters: int
    rate: float
    moved: float


@dataclass(frozen=True)
class FinetuneReport(Report):
    """The result of a fine-tuning run.

    Attributes:
        lr: the specification the rates came from, policies expanded.
        train, val, failed: images to train on, to validate on, and that could not be decoded.
        epochs: those that were trained; best_epoch is the one whose weights were kept, 0 for the start.
        metrics: of the weights that were kept, on the validation images; None without any.
        weights_sha256: of model.safetensors; empty in runs from before it was kept.
        start: validation accuracy of the head the network began with, fitted on frozen features.
    """

    output: Path
    backbone: str
    lr: str
    classes: list[str]
    train: int
    val: int
    failed: int
    epochs: int
    best_epoch: int
    metrics: AnyMetrics | None
    start: float | None
    layers: list[LayerChange]
    seconds: float
    weights_sha256: str = ""

    def lines(self) -> list[str]:
        text = [
            f"{self.output}: {self.backbone} fine-tuned to {self._learnt()} on "
            f"{plural(self.train, 'image')}, validated on {self.val:,}; {plural(self.epochs, 'epoch')}, "
            f"{f'the best was {self.best_epoch}' if self.best_epoch else 'none better than the start'}; "
            f"{format_duration(self.seconds)}"
        ]
        rows = [
            [row.layer, f"{row.parameters:,}", f"{row.rate:g}" if row.rate else "frozen", f"{row.moved:.3%}"]
            for row in self.layers
        ]
        text += table(["layer", "parameters", "rate", "moved"], rows)
        if self.start is not None:
            text.append(
                f"before: {'mean average precision' if isinstance(self.metrics, LabelMetrics) else 'accuracy'} "
                f"{self.start:.1%} on the validation images, with a head on the frozen features"
            )
        if self.metrics:
            text += metric_lines(self.metrics)
        if not self.best_epoch and self.start is None:
            text.append(
                "note: no epoch was better than the run it went on from, whose weights are kept; try lower rates"
            )
        elif not self.best_epoch:
            text.append(
                "note: no epoch was better than the head on the frozen features, so the run keeps that head; try "
                "lower rates, fewer layers or more images"
            )
        run = shlex.quote(str(self.output))
        text.append(f"use it: featx extract IMAGES -b {run} -o new.h5; featx predict {run} IMAGES -o new.csv")
        return text

    def _learnt(self) -> str:
        count = len(self.classes)
        return (
            plural(count, "number") if isinstance(self.metrics, ValueMetrics) else plural(count, "class", "classes")
        )


def request_of(config: FinetuneConfig) -> dict[str, Any]:
    """The options that a run's plan keeps: of class weights in a file its contents' hash."""
    given = config.class_weights
    weights = given if given == "none" else recorded_weights(given)
    return {**config.recorded(), "class_weights": weights}


def refuse_other_start(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise PlanMismatch if the weights or the code a run began with are others now.

    Args:
        begun, now: as a run's plan has them under "weights".
    """
    if begun.get("code") != now.get("code"):
        raise PlanMismatch(
            f"{folder} was begun with {begun.get('code')}, which is {now.get('code')} now; choose another "
            f"folder, or delete it"
        )
    if any(begun[key] != now[key] for key in ("spec", "sha256")):
        raise PlanMismatch(
            f"{folder} was begun with other weights ({str(begun['sha256'])[:12]}... then, "
            f"{str(now['sha256'])[:12]}... now); choose another folder, or delete it"
        )


class FinetunedRun(Artifact[FinetuneReport]):
    """FOLDER with config.json from the start, model.safetensors and report.json at the end."""

    noun = "run"
    config = FinetuneConfig

    def refuse_changed_files(self) -> None:
        """As every artifact's: the weights it began with, and the user's code of its network."""
        plan = read_run(self.path).plan
        begun, asked = plan.get("weights"), plan["request"]
        if not isinstance(begun, dict):
            return
        now, net = dict(begun), str(asked.get("backbone"))
        file = weights_file(net, str(asked.get("weights")))
        if begun.get("sha256") is not None and file.is_file():
            now["sha256"] = sha256_of_file(file)
        if is_code(read_run(net).backbone if is_run(net) else net):
            now["code"] = code_of(net)
        refuse_other_start(self.path, begun, now)

    def read(self) -> Stored[FinetuneReport] | None:
        if not (self.path / DESCRIPTION).exists():
            refuse_foreign_files(self.path, (WEIGHTS, TRAINED_ON, REPORT, *_WRITTEN), "featx finetune")
            return None
        run = read_run(self.path)
        plan = {key: run.plan[key] for key in ("request", "images", *_VERSIONS) if key in run.plan}
        finished = run.weights.exists() and (self.path / REPORT).exists()
        return Stored(plan, _report_in(self.path) if finished else None, run.plan.get("files"))


_WRITTEN = ("metrics.jsonl", "curves.png", "checkpoint.safetensors")
_VERSIONS = ("featx", "torch", "torchvision", "decoder")


def _report_in(folder: Path) -> FinetuneReport:
    path = folder / REPORT
    found = read_json_file(path)
    metrics = read_metrics(found.get("metrics"), f"{path}, metrics") if isinstance(found, dict) else None
    return build(FinetuneReport, found, str(path), output=folder, metrics=metrics)
