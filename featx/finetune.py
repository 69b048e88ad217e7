"""`featx finetune`: retrain a network on labelled images, with a learning rate for every layer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featx.atomic import disk_errors
from featx.config import FinetuneConfig
from featx.errors import FileFormatError, Interrupted, PlanMismatch
from featx.heads.metrics import Metrics, metric_lines
from featx.images.contents import refuse_other_files
from featx.images.scan import Manifest, scan
from featx.networks.runs import DESCRIPTION, read_run
from featx.progress import ALREADY_THERE, SILENT, Reporter, format_duration
from featx.report import Report, table
from featx.store.schema import differences

REPORT, LOCK = "report.json", ".lock"


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
    """What a fine-tuning has come to.

    Attributes:
        lr: the specification the rates came from, policies expanded.
        train, val, failed: images to train on, to validate on, and that could not be decoded.
        epochs: those that were trained; best_epoch is the one whose weights were kept, 0 for the start.
        metrics: of the weights that were kept, on the validation images; None without any.
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
    metrics: Metrics | None
    start: float | None
    layers: list[LayerChange]
    seconds: float

    def lines(self) -> list[str]:
        text = [
            f"{self.output}: {self.backbone} fine-tuned to {len(self.classes)} classes on {self.train:,} images, "
            f"{self.val:,} to validate; {self.epochs} epochs, "
            f"{f'the best was {self.best_epoch}' if self.best_epoch else 'none better than the start'}; "
            f"{format_duration(self.seconds)}"
        ]
        rows = [
            [row.layer, f"{row.parameters:,}", f"{row.rate:g}" if row.rate else "frozen", f"{row.moved:.3%}"]
            for row in self.layers
        ]
        text += table(["layer", "parameters", "rate", "moved"], rows)
        if self.start is not None:
            text.append(f"before: {self.start:.1%} of the validation images with a head on the frozen features")
        if self.metrics:
            text += metric_lines(self.metrics)
        if not self.best_epoch:
            text.append(
                "note: no epoch was better than the head on the frozen features, so that is what is kept: try lower "
                "rates, fewer layers or more images"
            )
        run = shlex.quote(str(self.output))
        text.append(f"use it: featx extract IMAGES -b {run} -o new.h5; featx predict {run} IMAGES -o new.csv")
        return text


def finetune_network(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: FinetuneConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FinetuneReport:
    """Retrain a network on the labelled images of a source, and keep it in a folder that is a backbone itself.

    The same call again goes on where an interrupted one has stopped, to the same weights, or does nothing if the run
    is finished.

    Args:
        source: as for `extract_features`, with labels.
        output: the run's folder.

    Raises:
        UsageError and its children: rates that name no layer or leave one out, labels that do not do.
        PlanMismatch: the folder holds another run, or one on other images of the same names.
        TooManyBadImages, DiskError, Interrupted: as `extract_features`.
        Diverged: the loss became NaN; the last good checkpoint is kept.
    """
    config, folder = config or FinetuneConfig(), Path(output)
    manifest = scan(source, follow_links=config.follow_links)
    finished = _take_finished(folder, manifest, config, reporter)
    if finished is not None:
        reporter.note(ALREADY_THERE)
        return finished
    from featx.device import choose_device
    from featx.finetuning import FineTuning
    from featx.networks.construct import refuse_unknown
    from featx.training.processes import join_processes, leave_processes

    refuse_unknown(config.backbone)
    processes, device = join_processes(choose_device(config.device))
    try:
        with _only_writer(folder, first=processes.rank == 0):
            return FineTuning(manifest, folder, config, device, processes, reporter).go()
    finally:
        leave_processes()


@contextlib.contextmanager
def _only_writer(folder: Path, *, first: bool) -> Iterator[None]:
    """Hold the folder's lock; the first of several processes holds it for all."""
    if not first:
        yield
        return
    made = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Interrupted(f"{folder} is being written by another featx; wait for it, or choose another") from None
        yield
    finally:
        if made and os.listdir(folder) == [LOCK]:  # refused before anything was kept
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(descriptor)


def _take_finished(
    folder: Path, manifest: Manifest, config: FinetuneConfig, reporter: Reporter
) -> FinetuneReport | None:
    """The report of a run that is done, without loading torch; None if there is something left to do.

    Raises:
        PlanMismatch: the folder holds another run.
    """
    if not (folder / DESCRIPTION).exists():
        return None
    stored = read_run(folder)
    asked = {"request": config.recorded(), "images": manifest.digest}
    # An option that came later than the run has its default there.
    request = {**FinetuneConfig().recorded(), **stored.plan.get("request", {})}
    begun = {"request": request, "images": stored.plan.get("images")}
    changed = differences(begun, asked)
    if changed:
        raise PlanMismatch(
            f"{folder} holds another run: {'; '.join(changed[:3])}. Choose another folder, or delete it"
        )
    if "files" in stored.plan and os.environ.get("RANK", "0") == "0":  # one process's word is enough
        refuse_other_files(str(folder), stored.plan["files"], manifest, reporter=reporter)
    if not (stored.weights.exists() and (folder / REPORT).exists()):
        return None
    return _report_from(folder)


def _report_from(folder: Path) -> FinetuneReport:
    path = folder / REPORT
    try:
        found = json.loads(path.read_text())
        metrics = None if found["metrics"] is None else Metrics(**found.pop("metrics"))
        layers = [LayerChange(**row) for row in found.pop("layers")]
        found.pop("metrics", None)
        return FinetuneReport(output=folder, metrics=metrics, layers=layers, **found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
