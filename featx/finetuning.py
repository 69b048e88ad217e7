"""One fine-tuning, from images to a run's folder: what `featx finetune` does once it knows there is work to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featx.activations import one_thread, usable_cores, versions
from featx.atomic import disk_errors, replacing
from featx.config import ExtractConfig, FinetuneConfig
from featx.device import free_memory, keep_freed_memory, strict_precision
from featx.errors import Interrupted, PlanMismatch, TooManyBadImages, UsageError, allow_more, bad_allowed
from featx.extract import extract_features
from featx.figures.curves import draw_curves
from featx.finetune import REPORT, FinetuneReport, LayerChange
from featx.heads.metrics import Metrics, measure
from featx.images.contents import content_hashes, files_state, record_of
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest
from featx.networks.backbones import Backbone, load_network
from featx.networks.construct import backbone_names, construct, replace_final_layer
from featx.networks.runs import DESCRIPTION, FORMAT, SCHEMA, WEIGHTS, read_run
from featx.networks.weights import weights_of
from featx.progress import SILENT, Reporter, graceful_stop
from featx.report import table
from featx.resident import ResidentLayers
from featx.store.reader import Features, open_features
from featx.store.schema import DONE
from featx.together import processes_here
from featx.training.augment import Augmentation, parse_augmentation
from featx.training.checkpoint import Checkpoint, save_tensors
from featx.training.compiled import refuse_without_compiler
from featx.training.head import fit_first_head, put_head
from featx.training.inputs import FeatureInputs, ImageInputs, Inputs
from featx.training.loop import Data, Training
from featx.training.pixels import Pixels
from featx.training.prefix import Cut, cut_before_head, cut_before_training
from featx.training.processes import Processes
from featx.training.rates import Rate, assign_rates, expand_policy, rate_table
from featx.training.task import plan_task

METRICS, CURVES = "metrics.jsonl", "curves.png"
CHECKPOINT, BEST, CACHE = "checkpoint.safetensors", "best.safetensors", "cache"
SCRATCH_RATE = "*=0.05"  # for --from-scratch without --lr


class FineTuning:
    """What is to be learnt, and where it is kept."""

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
        self.task = plan_task(manifest, val=config.val, split_column=config.split_column, seed=config.seed)
        self.wants_head = config.init_head != "random" and not config.from_scratch
        self.start: float | None = None
        self.resident = ResidentLayers()
        self._pixels: list[Pixels] = []

    def go(self) -> FinetuneReport:
        """Train to the end, or as far as signals let it.

        Raises:
            as `featx.finetune.finetune_network`.
        """
        try:
            return self._train()
        finally:
            for pixels in self._pixels:
                pixels.close()

    def _train(self) -> FinetuneReport:
        config = self.config
        if config.compile:
            refuse_without_compiler(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        network = self._network()
        self.lr = expand_policy(self._policy(), network, len(self.task.train))
        rates = assign_rates(self.lr, network)
        if not any(rate.rate for rate in rates):
            raise UsageError(f"--lr {config.lr!r} freezes every layer; nothing would be trained")
        how, cut = self._augmentation(network, rates)
        nodes = self._nodes(network, cut)
        for line in table(["layer", "parameters", "rate", "decay", ""], rate_table(rates, config.weight_decay)):
            self.reporter.note(line)
        self._describe()
        features = self._extract(nodes) if nodes else []
        self._describe_files(features)
        if self.wants_head:
            self._start_head(network, features[0], nodes[-1])
        start = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        network.to(self.device).to(memory_format=torch.channels_last)
        data = self._data(cut, how, features)
        part = network if cut is None else cut.rest
        training = Training(
            network, part, rates, data, config, self.device, self.processes, start_counts=self.start is not None
        )
        if (self.folder / CHECKPOINT).exists():
            training.resume(self.folder / CHECKPOINT)
        # A GPU's steps need one core to be queued, and many for a moment's arithmetic only wait for each other.
        threads = one_thread() if self.device.type == "cuda" else contextlib.nullcontext()
        with strict_precision("fp32"), graceful_stop() as stop, threads:
            training.run(save=self._save, keep_best=self._keep_best, stop=stop, reporter=self.reporter)
            if training.is_finished:
                return self._finish(training, rates, start)
        raise Interrupted(
            f"stopped by a signal in epoch {training.epoch + 1}; the same command goes on from there",
            128 + (stop.signal or signal.SIGTERM),
        )

    # --- the network

    def _network(self) -> nn.Module:
        """The network with its weights and a final layer for our classes."""
        config, classes = self.config, len(self.task.classes)
        source = None if config.from_scratch else weights_of(config.backbone, config.weights)
        backbone = Backbone(config.backbone, config.crop, source.published if source else None)
        self.preprocess = Preprocess.from_values(backbone.preprocessing).overridden(
            resize=config.resize, crop=config.crop, squash=config.squash
        )
        self.weights: dict[str, Any] = {"spec": "random", "sha256": None}
        if source is None:
            network = construct(config.backbone, config.seed, classes=classes)
        else:
            loaded = load_network(config.backbone, source, self.reporter.download)
            self.weights = {"spec": config.weights, "sha256": loaded.sha256}
            network = loaded.network
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                replace_final_layer(network, classes)
        if config.dropout is not None:
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = config.dropout
        return network

    def _policy(self) -> str:
        return SCRATCH_RATE if self.config.from_scratch and self.config.lr == "auto" else self.config.lr

    def _augmentation(self, network: nn.Module, rates: list[Rate]) -> tuple[Augmentation, Cut | None]:
        """What is done to the images, and where the frozen beginning ends whose output is stored instead."""
        cut = cut_before_training(network, rates)
        auto = "none" if cut else "flip,crop"
        how = parse_augmentation(auto if self.config.augment == "auto" else self.config.augment)
        if not how.is_none:
            cut = None
        if (how.mixup or how.cutmix) and self.config.class_weights != "none":
            raise UsageError("--augment mixup and cutmix mix classes, --class-weights weighs them: leave one out")
        if self.config.cache_views > 1 and cut is None:
            raise UsageError(
                "--cache-views 2 is for frozen first layers without augmentation: leave out --augment, and freeze "
                "them with --lr head or fc"
            )
        return how, cut

    def _nodes(self, network: nn.Module, cut: Cut | None) -> list[str]:
        """The graph nodes whose output is computed once: the cut's, and last what the head is fitted on."""
        nodes = [] if cut is None else [cut.node]
        if self.wants_head:
            before_head = cut_before_head(network)
            if before_head is None:
                raise UsageError(
                    f"{self.config.backbone}'s final layer is followed by others, so no head can be fitted for it; "
                    f"use --init-head random"
                )
            nodes.append(before_head.node)
        return nodes

    def _describe(self) -> None:
        """Write down what this run is, or see that it is the one that was begun.

        Raises:
            PlanMismatch: the weights it began with are others now.
        """
        if self.processes.rank == 0:
            path, name = self.folder / DESCRIPTION, self.config.backbone
            plan = read_run(self.folder).plan if path.exists() else {}
            begun = plan.get("weights", self.weights)
            if begun != self.weights:
                raise PlanMismatch(
                    f"{self.folder} was begun with other weights ({str(begun['sha256'])[:12]}... then, "
                    f"{str(self.weights['sha256'])[:12]}... now); choose another folder, or delete it"
                )
            described = {
                "format": FORMAT,
                "schema": SCHEMA,
                "backbone": name if name in backbone_names() else read_run(name).backbone,
                "classes": self.task.classes,
                "preprocess": self.preprocess.values(),
                "plan": {
                    "request": self.config.recorded(),
                    "images": self.manifest.digest,
                    **({"files": plan["files"]} if "files" in plan else {}),
                    "weights": self.weights,
                    "lr": self.lr,
                    "source": os.path.abspath(self.manifest.source),
                    **versions(),
                },
            }
            with replacing(path) as partial:
                partial.write_text(json.dumps(described, indent=1) + "\n")
        self.processes.wait()

    def _describe_files(self, features: list[Features]) -> None:
        """Write down which images these are, once: by the hashes that the features have, or else by reading them."""
        described = None if self.processes.rank else json.loads((self.folder / DESCRIPTION).read_text())
        if described is not None and "files" not in described["plan"]:
            state = files_state(self.manifest)
            hashes = features[0].sha256 if features else content_hashes(self.manifest, reporter=self.reporter)
            described["plan"]["files"] = record_of(state, hashes)
            with replacing(self.folder / DESCRIPTION) as partial:
                partial.write_text(json.dumps(described, indent=1) + "\n")
        self.processes.wait()

    # --- what is computed once

    def _extract(self, nodes: list[str]) -> list[Features]:
        """Features of the nodes for all images; a second file holds those of the mirror images."""
        config, found = self.config, []
        # Rounded as the training rounds: a difference in the seventh digit grows a thousandfold in a few steps.
        for view in range(config.cache_views):
            asked = ExtractConfig(
                backbone=config.backbone, weights=config.weights, layers=",".join(dict.fromkeys(nodes)),
                resize=config.resize, crop=config.crop, squash=config.squash, exif=config.exif, mirror=view == 1,
                follow_links=config.follow_links, max_bad=config.max_bad, device=config.device,
                workers=config.workers, plain=True,
            )  # fmt: skip
            path = self.folder / CACHE / ("mirrored.h5" if view else "features.h5")
            if self.processes.rank == 0:
                for_head = self.resident if self.wants_head and not view else None
                notes = _WithoutNotes(self.reporter)
                extract_features(self.manifest.source, path, asked, resident=for_head, reporter=notes)
            self.processes.wait()
            found.append(open_features(path))
        self.task.leave_out(found[0].status != DONE)
        return found

    def _start_head(self, network: nn.Module, features: Features, node: str) -> None:
        values, path = self.resident.values(features, node), self.folder / CACHE / "head.safetensors"
        if self.processes.rank == 0 and not path.exists():
            fit_first_head(
                self.config.init_head, values, self.task, path, seed=self.config.seed, device=self.device,
                reporter=self.reporter,
            )  # fmt: skip
        self.processes.wait()
        self.resident = ResidentLayers()  # the memory is the training's now
        values = features[node].reshape(len(features), -1)
        self.start = put_head(network, path, values, self.task)
        if self.start is not None:
            self.reporter.note(
                f"the head starts at the optimum for the frozen features: {self.start:.1%} of the validation images"
            )

    def _data(self, cut: Cut | None, how: Augmentation, features: list[Features]) -> Data:
        task = self.task
        train: Inputs
        val: Inputs | None
        if cut is None:
            train, val = self._images(how)
        else:
            views = [file[cut.node] for file in features]
            train = FeatureInputs(views, task.train, self.device)
            val = FeatureInputs(views[:1], task.val, self.device) if len(task.val) else None
        return Data(train, task.labels[task.train], val, task.labels[task.val], len(task.classes))

    def _images(self, how: Augmentation) -> tuple[ImageInputs, ImageInputs | None]:
        """Decoded images: those to train on somewhat larger than the network's input if a part is cut out of them."""
        config, task, exact = self.config, self.task, self.preprocess
        memory = config.memory or free_memory(torch.device("cpu")) // 2
        whole = how.only_mirrors or how.is_none or exact.squash
        wider = exact if whole else replace(exact, crop=exact.resize)
        share = len(task.train) / (len(task.train) + len(task.val))
        workers = config.workers or max(1, usable_cores() // processes_here())

        def load(rows: Any, preprocess: Preprocess, part: float) -> Pixels:
            found = Pixels(
                self.manifest, preprocess, rows, exif=config.exif, memory_bytes=int(part * memory),
                device=self.device, workers=workers, reporter=self.reporter,
            )  # fmt: skip
            self._pixels.append(found)
            return found

        train, val = load(task.train, wider, share), load(task.val, exact, 1 - share)
        bad = {**train.bad, **val.bad}
        self._refuse_too_many_bad(bad)
        task.leave_out(np.isin(np.arange(len(self.manifest)), list(bad)))
        inputs = ImageInputs(train, exact, how, wider.crop, self.device)
        if not len(task.val):
            return inputs, None
        return inputs, ImageInputs(val, exact, Augmentation(), exact.crop, self.device)

    def _refuse_too_many_bad(self, bad: dict[int, str]) -> None:
        count = len(self.task.train) + len(self.task.val)
        allowed = bad_allowed(self.config.max_bad, count)
        if len(bad) > allowed:
            row = min(bad)
            raise TooManyBadImages(
                f"{len(bad)} of {count} images are bad, --max-bad {self.config.max_bad:g} allows {allowed}: "
                f"{self.manifest.name(row)}: {bad[row]}. Allow more with {allow_more(len(bad), count)}"
            )

    # --- what is kept

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.processes.rank == 0:
            checkpoint.save(self.folder / CHECKPOINT)
            with replacing(self.folder / METRICS) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in checkpoint.history))
        self.processes.wait()

    def _keep_best(self, changed: dict[str, Tensor]) -> None:
        if self.processes.rank == 0:
            save_tensors(self.folder / BEST, changed)

    def _finish(self, training: Training, rates: list[Rate], start: dict[str, Tensor]) -> FinetuneReport:
        network, metrics = training.network, None
        with training.weights.averaged():
            if training.data.val is not None:
                self.processes.wait()
                training.weights.put_back(load_file(self.folder / BEST), self.folder / BEST)
                metrics = self._measure(training)
            state = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
        report = FinetuneReport(
            output=self.folder,
            backbone=self.config.backbone,
            lr=self.lr,
            classes=self.task.classes,
            train=len(self.task.train),
            val=len(self.task.val),
            failed=self.task.failed,
            epochs=training.epoch,
            best_epoch=training.best_epoch,
            metrics=metrics,
            start=self.start,
            layers=_changes(rates, start, state),
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
            logits, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return measure(logits.double().numpy(), labels.numpy(), self.task.classes)


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
    """How far each layer's weights have come."""
    found = []
    for layer in dict.fromkeys(rate.layer for rate in rates):
        own = [rate for rate in rates if rate.layer == layer]
        moved = sum(float((state[r.parameter].double() - start[r.parameter].double()).square().sum()) for r in own)
        length = sum(float(start[r.parameter].double().square().sum()) for r in own)
        share = (moved / length) ** 0.5 if length else 0.0
        leading = max(own, key=lambda rate: (rate.rate > 0, rate.values))
        found.append(LayerChange(layer, sum(r.values for r in own), leading.rate, share))
    return found
