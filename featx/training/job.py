"""One fine-tuning, from images to a run's folder: what `featx finetune` does once it knows there is work to do."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featx.artifacts.artifact import write_json
from featx.artifacts.finetuned_run import FinetuneReport, LayerChange
from featx.distributed.process_group import ProcessGroup
from featx.errors import Interrupted, UsageError
from featx.figures.training_curves import draw_curves
from featx.heads.quality.metrics import AnyMetrics
from featx.images.manifest import Manifest
from featx.images.sources.video.clips import refuse_unsuited
from featx.networks.build import auxiliary_layers, final_layer
from featx.networks.registry import takes_flow
from featx.networks.run_folder import REPORT, WEIGHTS, snapshot_path
from featx.options.training import FinetuneConfig
from featx.options.without_effect.rules import notes_on
from featx.runtime.compiler import refuse_without_compiler
from featx.runtime.device import strict_precision
from featx.runtime.files import disk_errors, replacing, sha256_of_file
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.signals import graceful_stop
from featx.runtime.text import table
from featx.runtime.threads import one_thread
from featx.training.checkpoint import Checkpoint, save_tensors
from featx.training.data.augment import Augmentation, parse_augmentation
from featx.training.data.precomputed import CACHE, Precomputed
from featx.training.epoch_log import open_log
from featx.training.frozen_prefix import Cut, cut_before_head, cut_before_training
from featx.training.goal import Numbers, goal_for
from featx.training.learning_rates import Rate, assign_rates, expand_policy, rate_table
from featx.training.run_record import describe_run, record_images
from featx.training.start import starting_network
from featx.training.task import plan_task, undivided
from featx.training.trainer import Trainer

METRICS, CURVES = "metrics.jsonl", "curves.png"
CHECKPOINT, BEST, LAST = "checkpoint.safetensors", "best.safetensors", "last.safetensors"
SCRATCH_RATE = "*=0.05"  # for --from-scratch without --lr


class FinetuningJob:
    """One fine-tuning: what is learned, and the folder it goes to."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        config: FinetuneConfig,
        device: torch.device,
        group: ProcessGroup,
        reporter: Reporter,
    ) -> None:
        self.started = time.perf_counter()
        self.manifest, self.folder, self.config = manifest, folder, config
        self.device, self.group = device, group
        self.reporter = reporter if group.is_first else SILENT
        copies = group.from_first(lambda: undivided(manifest, config.group_by, reporter=self.reporter))
        self.task = plan_task(
            manifest, val=config.val, split_column=config.split_column, seed=config.seed, copies=copies,
            values=config.task == "values",
        )  # fmt: skip
        self.task.refuse_unsuited(config)
        self.reporter.notes(self.task.notes(copies, config))
        fresh = not config.from_scratch and config.continue_epochs is None and self.task.kind != "values"
        self.wants_head = config.init_head != "random" and fresh
        self.start: float | None = None
        self.once = Precomputed(manifest, folder, config, self.task, device, group, self.reporter)

    def run(self) -> FinetuneReport:
        """Train to the end, or as far as signals let it.

        Raises:
            as `featx.commands.finetune.finetune_network`.
        """
        try:
            return self._train()
        finally:
            self.once.close()

    def _train(self) -> FinetuneReport:
        training = self.prepare()
        if (self.folder / CHECKPOINT).exists():
            training.resume(self.folder / CHECKPOINT)
        # A GPU's steps need one core to be queued, and many for a moment's arithmetic only wait for each other.
        threads = one_thread() if self.device.type == "cuda" else contextlib.nullcontext()
        log = open_log(
            self.config.log if self.group.is_first else "none", self.folder, self.task.classes, training.goal
        )
        with strict_precision("fp32"), graceful_stop() as stop, threads, contextlib.closing(log):
            training.run(
                save=self._save, keep_best=self._keep_best, keep_snapshot=self._keep_snapshot, log=log.write,
                stop=stop, reporter=self.reporter,
            )  # fmt: skip
            if training.is_finished:
                return self._finish(training)
        raise Interrupted(
            f"stopped by a signal in epoch {training.epoch + 1}; the same command goes on from there",
            128 + (stop.signal or signal.SIGTERM),
        )

    def prepare(self) -> Trainer:
        """Network, rates and data of the training, before its first step; what they are is written down.

        Raises:
            as `featx.commands.finetune.finetune_network`.
        """
        config = self.config
        if config.compile:
            refuse_without_compiler(self.device)
        begin = starting_network(config, self.task.classes, self.reporter)
        network, preprocess = begin.network, begin.preprocess
        refuse_unsuited(self.manifest, config.backbone, preprocess.crop, takes_flow=takes_flow(config.backbone))
        self.lr = expand_policy(self._policy(), network, len(self.task.train))
        self.rates = rates = assign_rates(self.lr, network)
        if not any(rate.rate for rate in rates):
            raise UsageError(f"--lr {config.lr!r} freezes every layer; nothing would be trained")
        facts = self.task.facts(network, rates, config, self.device.type, self.manifest.kind)
        self.reporter.notes(notes_on(config, facts))
        how, cut = self._augmentation(network, rates)
        nodes = self._nodes(network, cut)
        rows = rate_table(rates, config.weight_decay)
        self.reporter.notes(table(["layer", "parameters", "rate", "decay", ""], rows))
        if self.group.is_first:
            describe_run(
                self.folder, config, self.manifest, classes=self.task.classes, preprocess=preprocess,
                weights=begin.weights, lr=self.lr, task=self.task.kind,
            )  # fmt: skip
        self.group.wait()
        if nodes:
            self.once.extract(nodes, for_head=self.wants_head)
        if self.group.is_first:
            record_images(
                self.folder, self.manifest, self.task.train, self.task.val, self.once.features, self.reporter
            )
        self.group.wait()
        if self.wants_head:
            self.start = self.once.start_head(network, nodes[-1])
        goal = goal_for(self.task.kind, self.task.labels[self.task.train], self.task.classes, config, self.device)
        if config.continue_epochs is not None and isinstance(goal, Numbers):
            goal.from_units(network, self._final_layers(network))
        self.before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        network.to(self.device).to(memory_format=torch.channels_last)
        data = self.once.data(cut, how, preprocess)
        part = network if cut is None else cut.rest
        self.training = Trainer(
            network, part, rates, data, config, self.device, self.group, goal=goal,
            start_counts=self.start is not None or config.continue_epochs is not None,
        )  # fmt: skip
        return self.training

    # --- what it trains on

    def _policy(self) -> str:
        return SCRATCH_RATE if self.config.from_scratch and self.config.lr == "auto" else self.config.lr

    def _augmentation(self, network: nn.Module, rates: list[Rate]) -> tuple[Augmentation, Cut | None]:
        """What is done to the images, and where the frozen beginning ends whose output is stored instead."""
        cut = cut_before_training(network, rates)
        flow = takes_flow(self.config.backbone)
        auto = "none" if cut or flow else "flip,crop"
        how = parse_augmentation(auto if self.config.augment == "auto" else self.config.augment)
        if not how.is_none:
            cut = None
        if flow and not how.is_none:
            raise UsageError(f"--augment {self.config.augment} is for images: it would mix the channels of flow")
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

    # --- what is kept

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.group.is_first:
            checkpoint.save(self.folder / CHECKPOINT)
            self._write_metrics(checkpoint.history)
        self.group.wait()

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        with replacing(self.folder / METRICS) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in history))

    def _keep_best(self, changed: dict[str, Tensor]) -> None:
        if self.group.is_first:
            save_tensors(self.folder / BEST, changed)

    def _keep_snapshot(self, epoch: int, state: dict[str, Tensor]) -> None:
        if self.group.is_first:
            path = snapshot_path(self.folder, epoch)
            with disk_errors(path):
                path.parent.mkdir(exist_ok=True)
            save_tensors(path, self._in_units({name: tensor.cpu().clone() for name, tensor in state.items()}))

    def _in_units(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a network that gives numbers as they are, not as they were trained on."""
        goal = self.training.goal
        if isinstance(goal, Numbers):
            goal.in_units(state, self._final_layers(self.training.network))
        return state

    @staticmethod
    def _final_layers(network: nn.Module) -> list[str]:
        return [final_layer(network), *auxiliary_layers(network).values()]

    def _finish(self, training: Trainer) -> FinetuneReport:
        network = training.network
        metrics: AnyMetrics | None = None
        with training.weights.averaged():
            if training.data.val is not None:
                self.group.wait()
                training.weights.put_back(load_file(self.folder / BEST), self.folder / BEST)
                metrics = training.goal.report(*training.predict_all(), self.task.classes)
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
            layers=_changes(self.rates, self.before, state),
            seconds=time.perf_counter() - self.started,
        )
        if self.group.is_first:
            last = self.folder / LAST
            save_tensors(last, self._in_units(state))
            report = replace(report, weights_sha256=sha256_of_file(last))
            kept = {name: value for name, value in report.to_json().items() if name != "output"}
            write_json(self.folder / REPORT, kept)
            # Again: a kill between the last checkpoint and its metrics leaves metrics without the last epoch.
            self._write_metrics(training.history)
            draw_curves(self.folder / METRICS, self.folder / CURVES)
            with disk_errors(self.folder):
                last.replace(self.folder / WEIGHTS)  # from here on the run is finished
                for name in (CHECKPOINT, BEST):
                    (self.folder / name).unlink(missing_ok=True)
                shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        self.group.wait()
        return report


def _changes(rates: list[Rate], start: dict[str, Tensor], state: dict[str, Tensor]) -> list[LayerChange]:
    """How far each layer's weights moved from where they started."""
    found = []
    for layer in dict.fromkeys(rate.layer for rate in rates):
        own = [rate for rate in rates if rate.layer == layer]
        moved = sum(float((state[r.parameter].double() - start[r.parameter].double()).square().sum()) for r in own)
        length = sum(float(start[r.parameter].double().square().sum()) for r in own)
        share = (moved / length) ** 0.5 if length else 0.0
        leading = max(own, key=lambda rate: (rate.rate > 0, rate.values))
        found.append(LayerChange(layer, sum(r.values for r in own), leading.rate, share))
    return found
