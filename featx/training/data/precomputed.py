"""What a fine-tuning computes once: the output of frozen layers, the head it starts with, the decoded images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.distributed.process_group import ProcessGroup
from featx.errors import TooManyBadImages, allow_more, bad_allowed
from featx.extraction.gpu.device_cache import DeviceCache
from featx.extraction.job import extract
from featx.images.manifest import Manifest
from featx.images.preprocess import Preprocess
from featx.options.common import PREPARATION
from featx.options.extraction import ExtractConfig
from featx.options.training import FinetuneConfig
from featx.runtime.environment import read_environment
from featx.runtime.memory import free_memory
from featx.runtime.progress import OnlyProgress, Reporter
from featx.runtime.text import plural
from featx.runtime.threads import usable_cores
from featx.status import Status
from featx.store.open import open_features
from featx.store.reader import Features
from featx.training.data.augment import Augmentation
from featx.training.data.inputs import FeatureInputs, ImageInputs, Inputs
from featx.training.data.pixels import Pixels
from featx.training.frozen_prefix import Cut
from featx.training.initial_head import fit_first_head, put_head
from featx.training.task import Task
from featx.training.trainer import Data

CACHE = "cache"


class Precomputed:
    """Features, head and images of one fine-tuning, in the run's folder and in memory."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        config: FinetuneConfig,
        task: Task,
        device: torch.device,
        group: ProcessGroup,
        reporter: Reporter,
    ) -> None:
        self.manifest, self.folder, self.config, self.task = manifest, folder / CACHE, config, task
        self.device, self.group, self.reporter = device, group, reporter
        self.features: list[Features] = []
        self._on_device = DeviceCache()
        self._pixels: list[Pixels] = []

    def close(self) -> None:
        """Nothing more will be decoded."""
        for pixels in self._pixels:
            pixels.close()

    def extract(self, nodes: list[str], *, for_head: bool) -> None:
        """Features of the nodes for all images; a second file holds those of the mirror images."""
        config = self.config
        for view in range(config.cache_views):
            # Rounded as the training rounds: a difference in the seventh digit grows a thousandfold in a few steps.
            asked = ExtractConfig(
                backbone=config.backbone, weights=config.weights, layers=",".join(dict.fromkeys(nodes)),
                **{name: getattr(config, name) for name in PREPARATION}, mirror=view == 1,
                follow_links=config.follow_links, max_bad=config.max_bad, device=config.device,
                workers=config.workers, plain=True,
            )  # fmt: skip
            path = self.folder / ("mirrored.h5" if view else "features.h5")
            if self.group.is_first:
                cache = self._on_device if for_head and not view else None
                extract(self.manifest.source, path, asked, cache=cache, reporter=OnlyProgress(self.reporter))
            self.group.wait()
            self.features.append(open_features(path))
        self.task.leave_out(self.features[0].status != Status.DONE)

    def start_head(self, network: nn.Module, node: str) -> float | None:
        """Fit a head on the features of a node and put it into the network; its accuracy on the validation images."""
        features, path = self.features[0], self.folder / "head.safetensors"
        if self.group.is_first and not path.exists():
            fit_first_head(
                self.config.init_head, self._on_device.values(features, node), self.task, path,
                seed=self.config.seed, device=self.device, reporter=self.reporter,
            )  # fmt: skip
        self.group.wait()
        self._on_device = DeviceCache()  # the memory is the training's now
        accuracy = put_head(network, path, features[node].reshape(len(features), -1), self.task)
        if accuracy is not None:
            self.reporter.note(
                f"the head starts at the optimum for the frozen features: "
                f"{'mean average precision' if self.task.kind == 'labels' else 'accuracy'} {accuracy:.1%} on the "
                f"validation images"
            )
        return accuracy

    def data(self, cut: Cut | None, how: Augmentation, preprocess: Preprocess) -> Data:
        """Inputs and labels of the training.

        Args:
            cut: where the stored output of frozen layers takes the place of images; None for images.
            how: what is done to the images.
        """
        task = self.task
        train: Inputs
        val: Inputs | None
        if cut is None:
            train, val = self._images(how, preprocess)
        else:
            views = [file[cut.node] for file in self.features]
            train = FeatureInputs(views, task.train, self.device)
            val = FeatureInputs(views[:1], task.val, self.device) if len(task.val) else None
        return Data(train, task.labels[task.train], val, task.labels[task.val], len(task.classes))

    def _images(self, how: Augmentation, exact: Preprocess) -> tuple[ImageInputs, ImageInputs | None]:
        """Decoded images: those to train on somewhat larger than the network's input if a part is cut out of them."""
        config, task = self.config, self.task
        memory = config.memory or free_memory(torch.device("cpu")) // 2 // read_environment().local_world_size
        whole = how.only_mirrors or how.is_none or exact.fit != "crop"
        wider = exact if whole else replace(exact, crop=exact.resize)
        share = len(task.train) / (len(task.train) + len(task.val))
        workers = config.workers or max(1, usable_cores() // read_environment().local_world_size)

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
                f"{len(bad):,} of {plural(count, 'image')} failed, --max-bad {self.config.max_bad:g} allows "
                f"{allowed}: {self.manifest.name(row)}: {bad[row]}. Allow more with {allow_more(len(bad), count)}"
            )
