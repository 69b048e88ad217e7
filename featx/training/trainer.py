"""The loop: steps, epochs, validation and checkpoints, in one process or many.

Every step draws its order, its augmentation and its dropout from (seed, epoch, step), so that a training that was
killed goes on to the same weights, and the images of a step do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from featx.distributed.process_group import ProcessGroup, together
from featx.errors import Diverged, UsageError
from featx.networks.build import auxiliary_logits
from featx.options.parsing import parse_epochs
from featx.options.training import FinetuneConfig
from featx.runtime.compiler import compiled
from featx.runtime.device import upload
from featx.runtime.progress import Reporter
from featx.runtime.text import plural
from featx.training.checkpoint import Checkpoint
from featx.training.data.augment import Draws
from featx.training.data.inputs import Inputs
from featx.training.goal import Goal, Numbers
from featx.training.learning_rates import Rate, apply_modes, is_trained, trained_auxiliary_heads
from featx.training.optimization.ema import TrainedWeights
from featx.training.optimization.optimizer import make_optimiser, put_state, rate_factor, state_of
from featx.training.optimization.sync_batchnorm import share_batch_norm

Labels = npt.NDArray[Any]
Places = npt.NDArray[np.intp]
_ALL = slice(None)
_AUXILIARY_SHARE = 0.3  # of an auxiliary head's loss (Szegedy et al., Going deeper with convolutions, CVPR 2015)
_SUMS = 3  # of an epoch: loss, images that are right, images
_CHECKED_EVERY = 20  # steps between looks at whether the loss is still a number
_APART_S = 5.0  # between checkpoints at the ends of epochs: the shortest take less than storing them


@dataclass(frozen=True)
class Data:
    """Inputs and labels to train on and to validate on, see `Task.labels`.

    Attributes:
        val: None without a validation.
    """

    train: Inputs
    train_labels: Labels
    val: Inputs | None
    val_labels: Labels
    classes: int


@dataclass(frozen=True)
class Step:
    """What a step trains on.

    Attributes:
        places: of its images, for all processes and parts.
        draws: what is done to them; None: nothing.
    """

    places: Places
    draws: Draws | None


class Trainer:
    """A network on its way, at a place (epoch, step)."""

    def __init__(
        self,
        network: nn.Module,
        trained_part: nn.Module,
        rates: Sequence[Rate],
        data: Data,
        config: FinetuneConfig,
        device: torch.device,
        group: ProcessGroup,
        *,
        goal: Goal,
        start_counts: bool = False,
    ) -> None:
        """Args:

        network: all of it; changed in place.
        trained_part: what inputs go through: the network, or its modules behind the last frozen one.
        start_counts: the network as it comes is one of those the best on the validation images is chosen from.
        """
        self._start_counts = start_counts and data.val is not None
        self.network, self.rates, self.data, self.config = network, rates, data, config
        self.goal = goal
        self.device, self.group = device, group
        self._part = trained_part
        # Every image is seen once in an epoch: its steps have the same number of images, or one less.
        self.steps_per_epoch = -(-len(data.train) // config.batch_size)
        self._batch = min(config.batch_size, len(data.train))
        smallest = len(data.train) // self.steps_per_epoch
        if smallest // config.accumulate < group.world_size > 1:
            raise UsageError(
                f"{smallest} images per step in --accumulate {config.accumulate} parts are too few for "
                f"{group.world_size} processes: each needs one of every part. Use fewer processes or parts, or a "
                f"larger --batch-size"
            )
        self.weights = TrainedWeights(network, rates, config.ema)
        self.optimiser = make_optimiser(rates, self.weights.parameters, config)
        self._base_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.epoch, self.step = 0, 0
        self._snapshots = () if config.snapshots is None else parse_epochs(config.snapshots)
        self.history: list[dict[str, Any]] = []
        self._validated: tuple[Tensor, Tensor] | None = None  # outputs and targets of the last validation
        self._sums = torch.zeros(_SUMS, dtype=torch.float64, device=device)
        if group.world_size > 1:
            share_batch_norm(network)
        self._module = self._own_module = compiled(trained_part) if config.compile else trained_part
        self._exchanged: set[str] = set()
        self._orders: dict[int, Places] = {}  # of this epoch's images and of the next one's
        self._steps: dict[tuple[int, int], Step] = {}  # this one and the next
        self._enter_epoch()

    def _enter_epoch(self) -> None:
        """Freeze and free what this epoch wants, and tell the other processes what is exchanged."""
        apply_modes(self.network, self.rates, self.epoch)
        trained = {rate.parameter for rate in self.rates if is_trained(rate, self.epoch)}
        if self.group.world_size > 1 and trained != self._exchanged:
            self._module = DistributedDataParallel(self._own_module)
            self._exchanged = trained

    def run(
        self,
        *,
        save: Callable[[Checkpoint], None],
        keep_best: Callable[[dict[str, Tensor]], None],
        keep_snapshot: Callable[[int, dict[str, Tensor]], None],
        log: Callable[[dict[str, Any], Any], None] = lambda entry, measured: None,
        stop: threading.Event,
        reporter: Reporter,
    ) -> None:
        """Go on to the last epoch, or until `stop` is set or validation has not improved for `patience` epochs.

        Args:
            save: stores a checkpoint.
            keep_best: stores what has changed of the network when the validation is better than before.
            keep_snapshot: stores the whole network at the end of an epoch of --snapshots, or before the first.
            log: is told of every epoch, and what measures its validation.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        saved = time.monotonic()
        if (self.epoch, self.step) == (0, 0) and 0 in self._snapshots:
            keep_snapshot(0, self.network.state_dict())
        total = self.config.epochs * self.steps_per_epoch
        if self._start_counts and not self.history:
            self.history.append({"epoch": 0, **self.validate()})
            keep_best(self.weights.changing())
        reporter.begin("train", total, self.epoch * self.steps_per_epoch + self.step)
        while self.epoch < self.config.epochs and not self._has_run_out_of_patience():
            while self.step < self.steps_per_epoch:
                self._take_step()
                reporter.advance(1)
                at_end = self.step == self.steps_per_epoch
                if self.group.world_size > 1 and not at_end and self.step % _CHECKED_EVERY:
                    continue  # asking all processes costs more than a step or two
                late = time.monotonic() - saved > 60 * self.config.checkpoint_minutes
                asked, late = self.group.any(stop.is_set(), late)
                if asked or late or at_end or self.step % _CHECKED_EVERY == 0:
                    self._refuse_divergence()
                if (asked or late) and not at_end:
                    save(self.checkpoint())
                    saved = time.monotonic()
                    if asked:
                        reporter.end()
                        return
            self._finish_epoch(keep_best, keep_snapshot)
            reporter.note(_epoch_line(self.history[-1], self.config.epochs))
            log(self.history[-1], self._validated)
            apart = min(_APART_S, 60 * self.config.checkpoint_minutes)
            asked, late = self.group.any(stop.is_set(), time.monotonic() - saved >= apart)
            if asked or late or self.is_finished:
                save(self.checkpoint())
                saved = time.monotonic()
            if asked:
                break
        reporter.end()

    @property
    def is_finished(self) -> bool:
        return self.epoch >= self.config.epochs or self._has_run_out_of_patience()

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept: the best on the validation images (0: the start), or the last of all."""
        best = self.history[-1] if self.data.val is None else max(self.history, key=self._quality)
        return int(best["epoch"])

    def rate_factor(self) -> float:
        """What all rates are multiplied with in this step."""
        progress = self.epoch + (self.step + 0.5) / self.steps_per_epoch
        return rate_factor(self.config.schedule, progress, self.config.epochs, self.config.warmup)

    def _take_step(self) -> None:
        step, following = self._planned(self.epoch, self.step), self._next()
        torch.manual_seed(_mix(self.config.seed, self.epoch, self.step, 1 + self.group.rank))
        factor = self.rate_factor()
        for group, rate in zip(self.optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        weight = self._weight_of(step.places)
        parts = self._parts(len(step.places))
        for number, rows in enumerate(parts):
            last = number == len(parts) - 1
            inputs = self.data.train.take(step.places, rows, step.draws)
            if last and following is not None:
                for part in self._parts(len(following.places)):
                    self.data.train.expect(following.places, part, following.draws)
            with self._no_exchange(not last):
                self._backward(inputs, step, rows, weight, len(parts))
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.weights.parameters.values(), self.config.clip)
        self.optimiser.step()
        self.weights.step(self.epoch * self.steps_per_epoch + self.step)
        self.step += 1

    def try_step(self, factor: float) -> float:
        """Take a step with all rates multiplied by a factor, without an epoch's end; the loss before it."""
        before = self._sums.clone()
        self.rate_factor = lambda: factor  # type: ignore[method-assign]  # of this step, in place of the schedule's
        self._take_step()
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0
        loss, _, images = self.group.sum(self._sums - before).tolist()
        return float(loss / images)

    def _parts(self, images: int) -> list[slice]:
        """What this process takes of each part of a step; a part is the same images whoever takes them."""
        found = []
        for part in np.array_split(np.arange(images), min(self.config.accumulate, images)):
            mine, first = self.group.share(len(part)), int(part[0])
            found.append(slice(first + mine.start, first + mine.stop))
        return found

    def _labels(self, places: Places) -> Tensor:
        return upload(as_targets(self.data.train_labels[places]), self.device)

    def _loss(self, logits: Tensor, labels: Tensor, step: Step, rows: slice) -> Tensor:
        if step.draws is None or step.draws.mixes is None:
            return self.goal.loss(logits, labels)
        mixes = step.draws.mixes_of(rows)
        partners, shares = self._labels(step.places[mixes.partners.numpy()]), upload(mixes.shares, self.device)
        return self.goal.mixed_loss(logits, labels, partners, shares)

    def _backward(self, inputs: Tensor, step: Step, rows: slice, weight: float, parts: int) -> None:
        places = step.places[rows]
        labels = self._labels(places)
        logits, auxiliary = self._forward(self._module, inputs)
        loss = self._loss(logits, labels, step, rows)
        right = self.goal.right(logits.detach(), labels)
        self._sums += torch.stack([
            loss.detach().double() * len(places),
            loss.new_zeros((), dtype=torch.float64) if right is None else right.double(),
            torch.full((), float(len(places)), dtype=torch.float64, device=self.device),
        ])  # fmt: skip
        for said in auxiliary:
            loss = loss + _AUXILIARY_SHARE * self._loss(said, labels, step, rows)
        if parts > 1 or self.group.world_size > 1:
            # The mean over the whole step, whoever computes which part of it; the exchange divides by the processes.
            loss = loss * (self._weight_of(places) / weight * self.group.world_size)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own

    def _weight_of(self, places: Places) -> float:
        """What the images of a mean count for together."""
        return self.goal.weight_of(self.data.train_labels[places])

    def _forward(self, module: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, K) logits, and those of the auxiliary heads that are trained."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                outputs = module(inputs)
        except RuntimeError as error:
            if "Kernel size can't be greater" not in str(error) or not self.network.training:
                raise
            raise UsageError(
                f"images of {inputs.shape[-1]} x {inputs.shape[-1]} pixels are too small for the auxiliary head of "
                f"{self.config.backbone}: use its own --crop, or leave the head out with --lr '..., AuxLogits=0'"
            ) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"{plural(len(inputs), 'image')} per forward pass and process, and a BatchNorm that is trained needs "
                f"two values of every channel. Use a larger --batch-size, less --accumulate or fewer processes, or "
                f"freeze it: --lr '..., *bn*=0'"
            ) from error
        if isinstance(outputs, Tensor):
            return outputs.float(), []
        said = auxiliary_logits(self.network, outputs)
        trained = trained_auxiliary_heads(self.network, self.rates, self.epoch)
        return outputs.logits.float(), [said[name].float() for name in trained]

    def _planned(self, epoch: int, step: int) -> Step:
        """A step, in every process the same."""
        if epoch not in self._orders:
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.data.train))
            self._orders = {name: old for name, old in self._orders.items() if name == epoch - 1} | {epoch: order}
        if (epoch, step) not in self._steps:
            places = np.array_split(self._orders[epoch], self.steps_per_epoch)[step]
            generator = torch.Generator().manual_seed(_mix(self.config.seed, epoch, step, 0))
            draws = self.data.train.draw(len(places), generator)
            now = {name: old for name, old in self._steps.items() if name == (self.epoch, self.step)}
            self._steps = now | {(epoch, step): Step(places, draws)}
        return self._steps[epoch, step]

    def _next(self) -> Step | None:
        if self.step + 1 < self.steps_per_epoch:
            return self._planned(self.epoch, self.step + 1)
        return self._planned(self.epoch + 1, 0) if self.epoch + 1 < self.config.epochs else None

    def _no_exchange(self, off: bool) -> contextlib.AbstractContextManager[None]:
        if off and isinstance(self._module, DistributedDataParallel):
            found: contextlib.AbstractContextManager[None] = self._module.no_sync()
            return found
        return contextlib.nullcontext()

    def _refuse_divergence(self) -> None:
        """Look at the loss and the weights before anything is stored."""
        broken = self.weights.broken()
        if not self.group.any(bool(broken) or not math.isfinite(float(self._sums[0])))[0]:
            return
        state = (
            f"{len(broken)} of {len(self.weights.parameters)} trained tensors are NaN or infinite too; "
            if broken
            else ""
        )
        suspect = max((r for r in self.rates if is_trained(r, self.epoch)), key=lambda rate: rate.rate)
        raise Diverged(
            f"the loss is NaN or infinite in epoch {self.epoch + 1}, step {self.step}; {state}the highest rate is "
            f"{suspect.rate:g} of {suspect.layer}. The last good checkpoint is kept; train with a lower rate there, "
            f"or with --clip 1 or --warmup 1, in a new folder"
        )

    def _finish_epoch(
        self,
        keep_best: Callable[[dict[str, Tensor]], None],
        keep_snapshot: Callable[[int, dict[str, Tensor]], None],
    ) -> None:
        sums = self.group.sum(self._sums).tolist()
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "loss": sums[0] / sums[2],
            **({} if isinstance(self.goal, Numbers) else {"accuracy": sums[1] / sums[2]}),
            "rate_factor": float(self.optimiser.param_groups[0]["lr"]) / self._base_rates[0],
        }
        with self.weights.averaged():
            if self.data.val is not None:
                entry |= self.validate()
                if self._is_best(entry):
                    keep_best(self.weights.changing())
            if self.epoch + 1 in self._snapshots:
                keep_snapshot(self.epoch + 1, self.network.state_dict())
        self.history.append(entry)
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.zero_()
        if self.epoch < self.config.epochs:
            self._enter_epoch()

    def _is_best(self, entry: dict[str, Any]) -> bool:
        return all(self._quality(entry) > self._quality(old) for old in self.history)

    def _quality(self, entry: dict[str, Any]) -> tuple[float, float]:
        return entry[self.goal.quality], -entry["val_loss"]

    def _has_run_out_of_patience(self) -> bool:
        if self.config.patience is None or self.data.val is None or not self.history:
            return False
        return self.epoch - self.best_epoch >= self.config.patience

    def validate(self) -> dict[str, float]:
        """Loss, accuracy and what the best epoch is chosen by on the validation images, all processes together."""
        self._validated = self.predict_all()
        return self.goal.validation(*self._validated)

    def predict_all(self) -> tuple[Tensor, Tensor]:
        """Outputs and targets of all validation images, on the CPU, in every process."""
        outputs, targets = self.predict()
        if self.group.world_size > 1:
            parts: list[Any] = [None] * self.group.world_size
            with together():
                torch.distributed.all_gather_object(parts, (outputs, targets))
            outputs, targets = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return outputs, targets

    def predict(self) -> tuple[Tensor, Tensor]:
        """Logits and labels of this process's share of the validation images, on the CPU."""
        assert self.data.val is not None
        self.network.eval()
        share = self.group.share(len(self.data.val))
        places = np.arange(share.start, share.stop)
        found = []
        with torch.inference_mode():
            parts = [places[start : start + self._batch] for start in range(0, len(places), self._batch)]
            for part, following in zip(parts, [*parts[1:], None], strict=True):
                self.data.val.expect(part, _ALL, None)
                if following is not None:
                    self.data.val.expect(following, _ALL, None)
                found.append(self._forward(self._part, self.data.val.take(part, _ALL, None))[0].cpu())
        apply_modes(self.network, self.rates, self.epoch)
        labels = as_targets(self.data.val_labels[places])
        return torch.cat(found) if found else torch.zeros(0, self.data.classes), labels

    def checkpoint(self) -> Checkpoint:
        """Where it stands; in every process the same but for the sums."""
        optimiser = state_of(self.optimiser, self.weights.parameters)
        tensors = self.weights.stored() | {f"optimiser/{name}": tensor for name, tensor in optimiser.items()}
        sums = self.group.sum(self._sums).tolist()
        return Checkpoint(tensors, self.epoch, self.step, sums, self.history)

    def resume(self, path: Path) -> None:
        """Go back to where a checkpoint was made."""
        checkpoint = Checkpoint.load(path)
        self.weights.restore(checkpoint.part("model"), checkpoint.part("average"), path)
        put_state(self.optimiser, self.weights.parameters, checkpoint.part("optimiser"))
        self.epoch, self.step, self.history = checkpoint.epoch, checkpoint.step, list(checkpoint.history)
        # The sums are of all processes together; one of them goes on with them.
        self._sums.zero_()
        if self.group.is_first:
            self._sums += torch.tensor(checkpoint.sums, dtype=torch.float64, device=self.device)
        if self.epoch < self.config.epochs:
            self._enter_epoch()


def as_targets(labels: Labels) -> Tensor:
    """Labels as losses take them: classes as int64, membership and numbers as float32."""
    return torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.float32))


def _mix(*numbers: int) -> int:
    """A seed of its own for every combination."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _epoch_line(entry: dict[str, Any], epochs: int) -> str:
    text = f"epoch {entry['epoch']} of {epochs}: loss {entry['loss']:.3f}"
    if "accuracy" in entry:
        text += f", accuracy {entry['accuracy']:.1%}"
    if "val_loss" in entry:
        text += f"; validation loss {entry['val_loss']:.3f}"
        text += "".join(f", {words} {entry[key]:.1%}" for key, words in _SHOWN.items() if key in entry)
        text += f", R\u00b2 {entry['val_r2']:.3f}" if "val_r2" in entry else ""
    return text


_SHOWN = {"val_accuracy": "accuracy", "val_balanced": "mean per class", "val_ap": "mean average precision"}
