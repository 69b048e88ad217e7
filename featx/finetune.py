"""`featx finetune`: retrain a network on labelled images, with a learning rate for every layer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featx.activations import strict_precision, versions
from featx.atomic import disk_errors, replacing
from featx.config import ExtractConfig, FinetuneConfig
from featx.device import choose_device, free_memory
from featx.errors import FileFormatError, Interrupted, LabelError, PlanMismatch, TooManyBadImages, UsageError
from featx.extract import extract_features
from featx.figures.curves import draw_curves
from featx.fit import metric_lines
from featx.heads.calibrate import calibrate
from featx.heads.labels import is_multilabel
from featx.heads.metrics import Metrics, measure
from featx.heads.search import fit_heads
from featx.heads.split import split_by_name, split_by_share
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest, scan
from featx.networks.backbones import Backbone, load_network
from featx.networks.construct import (
    backbone_names,
    construct,
    final_layer,
    refuse_unknown,
    replace_final_layer,
)
from featx.networks.runs import DESCRIPTION, FORMAT, SCHEMA, WEIGHTS, read_run
from featx.networks.weights import weights_of
from featx.progress import SILENT, Reporter, format_duration, graceful_stop
from featx.report import Report, table
from featx.store.reader import Features, open_features
from featx.store.schema import differences
from featx.training.augment import Augmentation, parse_augmentation
from featx.training.checkpoint import Checkpoint, save_tensors
from featx.training.inputs import FeatureInputs, ImageInputs, Inputs
from featx.training.loop import Data, Training
from featx.training.pixels import Pixels, Rows
from featx.training.prefix import Cut, cut_before_head, cut_before_training
from featx.training.processes import Processes, join_processes, leave_processes
from featx.training.rates import Rate, assign_rates, expand_policy, rate_table

DEFAULT_VAL = 0.1
REPORT, METRICS, CURVES = "report.json", "metrics.jsonl", "curves.png"
CHECKPOINT, BEST, CACHE, HEAD = "checkpoint.safetensors", "best.safetensors", "cache", "head.safetensors"
FOLDS = 5


@dataclass(frozen=True)
class LayerChange(Report):
    """How a layer was trained, and how far its weights have come: |w - start| / |start|."""

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
        epochs: those that were trained; best_epoch is the one whose weights were kept.
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
    notes: list[str]
    seconds: float

    def lines(self) -> list[str]:
        text = [
            f"{self.output}: {self.backbone} fine-tuned to {len(self.classes)} classes on {self.train:,} images, "
            f"{self.val:,} to validate; {self.epochs} epochs, the best was {self.best_epoch}; "
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
        text += [f"note: {note}" for note in self.notes]
        text.append(f"use it: featx extract NEW_IMAGES -b {self.output}; featx predict {self.output} NEW_IMAGES")
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
        PlanMismatch: the folder holds another run.
        TooManyBadImages, DiskError, Interrupted: as `extract_features`.
        Diverged: the loss became NaN; the last good checkpoint is kept.
    """
    config, folder = config or FinetuneConfig(), Path(output)
    refuse_unknown(config.backbone)
    manifest = scan(source, follow_links=config.follow_links)
    processes, device = join_processes(choose_device(config.device))
    try:
        with _only_writer(folder, processes):
            run = _Run(manifest, folder, config, device, processes, reporter)
            finished = run.take_finished()
            return finished if finished is not None else run.go()
    finally:
        leave_processes()


@contextlib.contextmanager
def _only_writer(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder's lock; the first process holds it for all."""
    if processes.rank:
        yield
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Interrupted(f"{folder} is being written by another featx; wait for it, or choose another") from None
        yield
    finally:
        os.close(descriptor)


class _Run:
    """One fine-tuning: what it is to do, and where it keeps things."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        config: FinetuneConfig,
        device: torch.device,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self.started = time.perf_counter()
        self.manifest, self.folder, self.config = manifest, folder, config
        self.device, self.processes = device, processes
        self.reporter = reporter if processes.rank == 0 else SILENT
        self.labels = np.array(manifest.labels, np.int32)
        self.train_rows, self.val_rows = self._split()
        self.classes = self._compact_labels()
        self.lr = ""
        self.failed = 0
        self.notes: list[str] = []
        self.start: float | None = None

    def _split(self) -> tuple[Rows, Rows]:
        rows = np.flatnonzero(self.labels >= 0)
        if not len(rows):
            raise LabelError(
                f"{self.manifest.source} has no labels: put the images into one folder per class, or list them in a "
                f"CSV with the columns path,label"
            )
        if is_multilabel(list(self.manifest.classes)):
            raise LabelError(
                f"images of {self.manifest.source} have several classes (a|b); fine-tuning gives each one. Every "
                f"class against the rest, on features: featx fit-svm"
            )
        if self.config.split_column:
            split_of = np.array(self.manifest.split_of, np.int32)[rows]
            train, val = split_by_name(split_of, list(self.manifest.splits))
        else:
            share = DEFAULT_VAL if self.config.val is None else self.config.val
            train, val = split_by_share(self.labels[rows], share, self.config.seed)
        return rows[train], rows[val]

    def _compact_labels(self) -> list[str]:
        """Number the classes that have images to train on; images of others are not validated on."""
        present = np.unique(self.labels[self.train_rows])
        if len(present) < 2:
            named = ", ".join(repr(self.manifest.classes[label]) for label in present)
            raise LabelError(f"{self.manifest.source}: two classes or more are needed; to train on: {named}")
        compact = np.full(len(self.manifest.classes) + 1, -1, np.int32)
        compact[present] = np.arange(len(present), dtype=np.int32)
        self.labels = compact[self.labels]
        self.val_rows = self.val_rows[self.labels[self.val_rows] >= 0]
        return [self.manifest.classes[label] for label in present]

    def take_finished(self) -> FinetuneReport | None:
        """The report of a run that is done; None if there is something left to do.

        Raises:
            PlanMismatch: the folder holds another run.
        """
        if not (self.folder / DESCRIPTION).exists():
            return None
        stored = read_run(self.folder)
        asked = {"request": self.config.recorded(), "images": self.manifest.digest}
        changed = differences({name: stored.plan.get(name) for name in asked}, asked)
        if changed:
            raise PlanMismatch(
                f"{self.folder} holds another run: {'; '.join(changed[:3])}. Choose another folder, or delete it"
            )
        if not (stored.weights.exists() and (self.folder / REPORT).exists()):
            return None
        return _report_from(self.folder)

    def go(self) -> FinetuneReport:
        config = self.config
        self.backbone = Backbone(config.backbone, config.crop, self._source_of_weights())
        self.preprocess = Preprocess.from_values(self.backbone.preprocessing).overridden(
            resize=config.resize, crop=config.crop, squash=config.squash
        )
        network = self._network()
        self.lr = expand_policy(self._policy(), network, len(self.train_rows))
        rates = assign_rates(self.lr, network)
        if not any(rate.rate for rate in rates):
            raise UsageError(f"--lr {config.lr!r} freezes every layer; nothing would be trained")
        how, cut = self._augmentation(network, rates)
        rows = rate_table(rates, config.weight_decay)
        for line in table(["layer", "parameters", "rate", "decay", ""], rows):
            self.reporter.note(line)
        if self.processes.rank == 0:
            self._describe()
        self.processes.wait()
        features = self._extract(network, cut)
        if config.init_head != "random" and not config.from_scratch:
            self._init_head(network, features[0])
        start = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        network.to(self.device).to(memory_format=torch.channels_last)
        data = self._data(cut, how, features)
        part = network if cut is None else cut.rest
        training = Training(network, part, rates, data, config, self.device, self.processes)
        if (self.folder / CHECKPOINT).exists():
            training.resume(Checkpoint.load(self.folder / CHECKPOINT))
        with strict_precision("fp32"), graceful_stop() as stop:
            training.run(save=self._save, keep_best=self._keep_best, stop=stop, reporter=self.reporter)
            if training.is_finished:
                return self._finish(training, rates, start)
        raise Interrupted(
            f"stopped by a signal in epoch {training.epoch + 1}; the same command goes on from there",
            128 + (stop.signal or signal.SIGTERM),
        )

    def _source_of_weights(self) -> str | None:
        if self.config.from_scratch:
            return None
        return weights_of(self.config.backbone, self.config.weights).published

    def _policy(self) -> str:
        if self.config.from_scratch and self.config.lr == "auto":
            return "*=0.05"
        return self.config.lr

    def _network(self) -> nn.Module:
        """The network with its weights and a final layer for our classes, in training's own float32."""
        config = self.config
        if config.from_scratch:
            network = construct(config.backbone, config.seed, classes=len(self.classes))
            self.weights = {"spec": "random", "sha256": None}
        else:
            source = weights_of(config.backbone, config.weights)
            loaded = load_network(config.backbone, source, self.reporter.download)
            self.weights = {"spec": config.weights, "sha256": loaded.sha256}
            network = loaded.network
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                replace_final_layer(network, len(self.classes))
        if config.dropout is not None:
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = config.dropout
        return network

    def _augmentation(self, network: nn.Module, rates: list[Rate]) -> tuple[Augmentation, Cut | None]:
        """What is done to the images, and where the frozen beginning ends whose output is stored instead."""
        cut = cut_before_training(network, rates)
        if self.config.augment == "auto":
            how = parse_augmentation("none" if cut else "flip,crop")
        else:
            how = parse_augmentation(self.config.augment)
        if not how.is_none:
            cut = None
        if self.config.cache_views > 1 and cut is None:
            raise UsageError(
                "--cache-views 2 is for frozen first layers without augmentation: leave out --augment, and freeze "
                "them with --lr head or fc"
            )
        return how, cut

    def _describe(self) -> None:
        described = {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": self._origin(),
            "classes": self.classes,
            "preprocess": self.preprocess.values(),
            "plan": {
                "request": self.config.recorded(),
                "images": self.manifest.digest,
                "weights": self.weights,
                "lr": self.lr,
                "source": os.path.abspath(self.manifest.source),
                **versions(),
            },
        }
        with replacing(self.folder / DESCRIPTION) as partial:
            partial.write_text(json.dumps(described, indent=1) + "\n")

    def _origin(self) -> str:
        """The network's own name, also if it was fine-tuned before."""
        name = self.config.backbone
        return name if name in backbone_names() else read_run(name).backbone

    # --- what is computed once

    def _extract(self, network: nn.Module, cut: Cut | None) -> list[Features]:
        """Features of the frozen beginning, and of what the head is fitted on; a second file holds mirror images."""
        config = self.config
        nodes = [cut.node] if cut is not None else []
        if config.init_head != "random" and not config.from_scratch:
            before_head = cut_before_head(network)
            if before_head is None:
                raise UsageError(
                    f"{config.backbone}'s final layer is followed by others, so no head can be fitted for it; use "
                    f"--init-head random"
                )
            self.before_head = before_head.node
            nodes.append(before_head.node)
        if not nodes:
            return []
        found = []
        for view in range(config.cache_views):
            asked = ExtractConfig(
                backbone=config.backbone, weights=config.weights, layers=",".join(dict.fromkeys(nodes)),
                resize=config.resize, crop=config.crop, squash=config.squash, exif=config.exif, mirror=view == 1,
                follow_links=config.follow_links, max_bad=config.max_bad, device=config.device,
                workers=config.workers,
            )  # fmt: skip
            path = self.folder / CACHE / ("mirrored.h5" if view else "features.h5")
            if self.processes.rank == 0:
                extract_features(self.manifest.source, path, asked, reporter=_WithoutNotes(self.reporter))
            self.processes.wait()
            found.append(open_features(path))
        good = found[0].status == 1
        self.failed = int((~good[np.concatenate([self.train_rows, self.val_rows])]).sum())
        self.train_rows = self.train_rows[good[self.train_rows]]
        self.val_rows = self.val_rows[good[self.val_rows]]
        self._refuse_empty()
        return found

    def _init_head(self, network: nn.Module, features: Features) -> None:
        """Start the final layer at the optimum of a convex head on the frozen features."""
        values = features[self.before_head].reshape(len(features), -1)
        path = self.folder / CACHE / HEAD
        if self.processes.rank == 0 and not path.exists():
            weights, bias = self._fit_head(values)
            save_tensors(path, {"weights": torch.from_numpy(weights), "bias": torch.from_numpy(bias)})
        self.processes.wait()
        head = load_file(path)
        final = network.get_submodule(final_layer(network))
        with torch.no_grad():
            final.weight.copy_(head["weights"])  # type: ignore[operator]  # a Linear's weight is a tensor
            final.bias.copy_(head["bias"])  # type: ignore[operator]  # and so is its bias
        if len(self.val_rows):
            scores = np.asarray(values[self.val_rows], np.float64) @ head["weights"].T.numpy() + head["bias"].numpy()
            self.start = float((scores.argmax(1) == self.labels[self.val_rows]).mean())
            self.reporter.note(
                f"the head starts at the optimum for the frozen features: {self.start:.1%} of the validation images"
            )

    def _fit_head(self, values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        labels = self.labels[self.train_rows]
        folds, c = min(FOLDS, int(np.bincount(labels).min())), None
        if folds < 2:
            # A class with one image cannot be cross-validated: the C at which data and regularisation weigh alike.
            c = 1 / max(float(np.var(values[self.train_rows[:1000]], axis=0, dtype=np.float64).sum()), 1e-12)
        found = fit_heads(
            self.config.init_head,
            values,
            self.train_rows,
            labels,
            self.classes,
            c=c,
            folds=folds,
            seed=self.config.seed,
            normalize="none",
            device=self.device,
            memory_bytes=free_memory(self.device) // 2,
            keep_scores=self.config.init_head == "svm" and c is None,
            reporter=self.reporter,
        )
        if found.held_out_scores is None:
            return found.weights, found.bias
        # Margins of an SVM are no logits: one factor for all of them makes the best of them as such.
        slope = calibrate("temperature", found.held_out_scores, labels).slopes[0]
        return slope * found.weights, slope * found.bias

    def _data(self, cut: Cut | None, how: Augmentation, features: list[Features]) -> Data:
        train: Inputs
        val: Inputs | None = None
        if cut is not None:
            views = [file[cut.node] for file in features]
            train = FeatureInputs(views, self.train_rows, self.device)
            val = FeatureInputs(views[:1], self.val_rows, self.device) if len(self.val_rows) else None
        else:
            train, val = self._images(how)
        return Data(train, self.labels[self.train_rows], val, self.labels[self.val_rows], len(self.classes))

    def _images(self, how: Augmentation) -> tuple[ImageInputs, ImageInputs | None]:
        """Decoded images: those to train on somewhat larger than the network's input if a crop is cut out of them."""
        config = self.config
        memory = config.memory or free_memory(torch.device("cpu")) // 2
        exact = self.preprocess
        wider = exact if how.only_mirrors or how.is_none or exact.squash else replace(exact, crop=exact.resize)
        share = len(self.val_rows) / (len(self.val_rows) + len(self.train_rows))
        found = []
        for rows, preprocess, part in (
            (self.train_rows, wider, memory * (1 - share)),
            (self.val_rows, exact, memory * share),
        ):
            found.append(
                Pixels(
                    self.manifest, preprocess, rows, exif=config.exif, memory_bytes=int(part), workers=config.workers,
                    reporter=self.reporter,
                )
            )  # fmt: skip
        self._refuse_too_many_bad({**found[0].bad, **found[1].bad})
        self.failed += len(found[0].bad) + len(found[1].bad)
        self.train_rows, self.val_rows = found[0].rows, found[1].rows
        self._refuse_empty()
        train = ImageInputs(found[0], exact, how, wider.crop, self.device)
        if not len(self.val_rows):
            return train, None
        return train, ImageInputs(found[1], exact, Augmentation(), exact.crop, self.device)

    def _refuse_too_many_bad(self, bad: dict[int, str]) -> None:
        count = len(self.train_rows) + len(self.val_rows)
        if len(bad) > int(self.config.max_bad * count):
            row = min(bad)
            raise TooManyBadImages(
                f"{len(bad)} of {count} images are bad, --max-bad {self.config.max_bad:g} allows "
                f"{int(self.config.max_bad * count)}: {self.manifest.name(row)}: {bad[row]}. Allow more: --max-bad 5%"
            )

    def _refuse_empty(self) -> None:
        left = np.unique(self.labels[self.train_rows])
        if len(left) < len(self.classes):
            gone = next(name for label, name in enumerate(self.classes) if label not in left)
            raise LabelError(f"no image of class {gone!r} is left to train on: all of them failed")

    # --- what is kept

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.processes.rank == 0:
            checkpoint.save(self.folder / CHECKPOINT)
            with replacing(self.folder / METRICS) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in checkpoint.history))
        self.processes.wait()

    def _keep_best(self, state: dict[str, Tensor]) -> None:
        if self.processes.rank == 0:
            save_tensors(self.folder / BEST, state)

    def _finish(self, training: Training, rates: list[Rate], start: dict[str, Tensor]) -> FinetuneReport:
        network, metrics = training.network, None
        with training.averaged():
            if training.data.val is not None:
                self.processes.wait()
                network.load_state_dict(load_file(self.folder / BEST))
                metrics = self._measure(training)
            state = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
        entries = training.history
        best = max(
            entries, key=lambda entry: (entry.get("val_accuracy", entry["epoch"]), -entry.get("val_loss", 0.0))
        )
        report = FinetuneReport(
            output=self.folder,
            backbone=self.config.backbone,
            lr=self.lr,
            classes=self.classes,
            train=len(self.train_rows),
            val=len(self.val_rows),
            failed=self.failed,
            epochs=len(entries),
            best_epoch=int(best["epoch"]),
            metrics=metrics,
            start=self.start,
            layers=_changes(rates, start, state),
            notes=self.notes,
            seconds=time.perf_counter() - self.started,
        )
        if self.processes.rank == 0:
            with replacing(self.folder / REPORT) as partial:
                kept = {name: value for name, value in report.to_json().items() if name != "output"}
                partial.write_text(json.dumps(kept, indent=1) + "\n")
            draw_curves(self.folder / METRICS, self.folder / CURVES)
            save_tensors(self.folder / WEIGHTS, state)
            with disk_errors(self.folder):
                for name in (CHECKPOINT, BEST):
                    (self.folder / name).unlink(missing_ok=True)
                shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        self.processes.wait()
        return report

    def _measure(self, training: Training) -> Metrics:
        logits, labels = training.predict()
        if self.processes.count > 1:
            parts: list[Any] = [None] * self.processes.count
            torch.distributed.all_gather_object(parts, (logits, labels))
            logits = torch.cat([part[0] for part in parts])
            labels = torch.cat([part[1] for part in parts])
        return measure(logits.double().numpy(), labels.numpy(), self.classes)


class _WithoutNotes(Reporter):
    """Shows the progress of a step on the way, but not its plan."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._reporter.begin(what, total, done)

    def advance(self, steps: int) -> None:
        self._reporter.advance(steps)

    def end(self) -> None:
        self._reporter.end()

    def download(self, what: str, done: int, total: int) -> None:
        self._reporter.download(what, done, total)


def _changes(rates: list[Rate], start: dict[str, Tensor], state: dict[str, Tensor]) -> list[LayerChange]:
    found = []
    for layer in dict.fromkeys(rate.layer for rate in rates):
        own = [rate for rate in rates if rate.layer == layer]
        moved = sum(float((state[r.parameter].double() - start[r.parameter].double()).square().sum()) for r in own)
        length = sum(float(start[r.parameter].double().square().sum()) for r in own)
        share = (moved / length) ** 0.5 if length else 0.0
        found.append(LayerChange(layer, sum(r.values for r in own), max(r.rate for r in own), share))
    return found


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
