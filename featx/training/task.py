"""What a fine-tuning is to learn: classes, and which images train and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from featx.errors import LabelError, UsageError
from featx.heads.labels import classes_of, is_known, is_multilabel, labels_among, values_among
from featx.heads.splits import Rows, split_by_name, split_by_share, united
from featx.images.contents import copies_in, groups_among, named_groups
from featx.images.manifest import Manifest
from featx.options.training import FinetuneConfig
from featx.options.without_effect.rule import Facts
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural, printable
from featx.training.layer_groups import layer_groups
from featx.training.learning_rates import Rate

DEFAULT_VAL = 0.1


@dataclass
class Task:
    """Labelled images of a manifest.

    Attributes:
        labels: of all rows of the manifest: (N,) indices into `classes`, -1 for none of them; where images have
            several classes their membership (N, K) of bool; numbers (N, K) of float32, NaN for none.
        classes: those that have images to train on; of numbers their names.
        train, val: rows of the manifest.
        failed: images of these that could not be decoded and were taken out.
        split: the source's own split that is validated on; empty where a share is held out at random.
        unlearnt: images to validate on whose classes none of the training images has, which are left out, and one
            of these classes.
    """

    labels: npt.NDArray[Any]
    classes: list[str]
    train: Rows
    val: Rows
    failed: int = 0
    split: str = ""
    unlearnt: tuple[int, str] = (0, "")

    @property
    def kind(self) -> str:
        """What is learnt, see `featx.networks.run_folder.Run`."""
        if self.labels.ndim == 1:
            return "classes"
        return "labels" if self.labels.dtype == bool else "values"

    def sizes(self) -> npt.NDArray[np.intp]:
        """(K,) images to train on of each class."""
        own = self.labels[self.train]
        return own.sum(axis=0) if own.ndim == 2 else np.bincount(own, minlength=len(self.classes))

    def refuse_unsuited(self, config: FinetuneConfig) -> None:
        """Raise UsageError for options that are of other labels."""
        if self.kind == "classes":
            return
        what = "images have several classes (a|b)" if self.kind == "labels" else "--task values learns numbers"
        if config.class_weights != "none":
            raise UsageError(f"{what}; --class-weights is for one class per image")
        if config.score not in ((None, "ap") if self.kind == "labels" else (None,)):
            chosen = "the mean average precision" if self.kind == "labels" else "R\u00b2"
            raise UsageError(f"{what}; the best epoch is chosen by {chosen}: leave out --score {config.score}")
        if self.kind == "values" and config.label_smoothing:
            raise UsageError(f"{what}; --label-smoothing is for classes")

    def leave_out(self, bad: npt.NDArray[np.bool_]) -> None:
        """Take out the rows that `bad` (N,) marks.

        Raises:
            LabelError: nothing of a class would be left to train on.
        """
        self.failed += int(bad[self.train].sum() + bad[self.val].sum())
        self.train, self.val = self.train[~bad[self.train]], self.val[~bad[self.val]]
        if not len(self.train):
            raise LabelError("no image is left to train on: all of them failed")
        if self.kind != "values" and not self.sizes().all():
            gone = self.classes[int((self.sizes() == 0).argmax())]
            raise LabelError(f"no image of class {gone!r} is left to train on: all of them failed")

    def notes(self, copies: Rows, config: FinetuneConfig) -> list[str]:
        """What the user should know of the validation: that there is none, or of images that are trained on too.

        Args:
            copies: (N,) as for `plan_task`.
        """
        found = []
        if not len(self.val) and config.val != 0:
            found.append(
                f"note: nothing is validated on: of {plural(len(self.train), 'image')} of "
                f"{plural(len(self.classes), 'class', 'classes')} "
                f"{'--split-column' if config.split_column else '--val'} holds out none, so the last epoch is kept"
            )
        if self.split.lower() in ("test", "testing"):
            found.append(
                f"note: there is no split called val, so the best epoch is chosen on {self.split}, and the accuracy "
                f"there is too good; a split called val is taken instead"
            )
        if self.unlearnt[0]:
            found.append(
                f"note: {plural(self.unlearnt[0], 'image')} to validate on "
                f"{'is' if self.unlearnt[0] == 1 else 'are'} left out, of classes that no training image has, as "
                f"{printable(self.unlearnt[1])!r}"
            )
        copied = int(np.isin(copies[self.val], copies[self.train]).sum())
        if copied:
            found.append(
                f"note: {plural(copied, 'validation image')} {'is a copy' if copied == 1 else 'are copies'} of "
                f"training images, as the source's own splits have it: the validation accuracy is too high"
            )
        return found

    def facts(
        self, network: nn.Module, rates: Sequence[Rate], config: FinetuneConfig, device: str, source_kind: str
    ) -> Facts:
        """What the rules about options without effect ask."""
        live = [rate for rate in rates if rate.rate]
        trained = {rate.layer: min(one.epoch for one in live if one.layer == rate.layer) for rate in live}
        inside = [name for group in layer_groups(network) if group.name in trained for name in group.modules]
        dropouts = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Dropout) and any(name == one or name.startswith(f"{one}.") for one in inside)
        ]
        return Facts(
            epochs_of_rates=trained,
            frozen=tuple(dict.fromkeys(rate.layer for rate in rates if rate.layer not in trained)),
            steps=config.epochs * -(-len(self.train) // config.batch_size),
            train=len(self.train),
            val=len(self.val),
            class_sizes=tuple(self.sizes().tolist()) if self.kind == "classes" else (),
            trained_dropouts=len(dropouts),
            device=device,
            source_kind=source_kind,
        )


def plan_task(
    manifest: Manifest,
    *,
    val: float | None,
    split_column: bool,
    seed: int,
    copies: Rows | None = None,
    values: bool = False,
) -> Task:
    """Split a manifest's labelled images.

    Args:
        copies: (N,) which images are of the same bytes, see `featx.images.contents.copies_in`: they train or validate
            together, unless the manifest's own splits divide them.
        val: share of every class to validate on.
        split_column: use the manifest's own splits instead.
        values: labels are numbers.

    Raises:
        LabelError: no labels, one class only, no numbers, no such splits.
    """
    labels = np.array(manifest.labels, np.int32)
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise LabelError(
            f"{manifest.source} has no labels: put the images into one folder per class, or list them in a CSV with "
            f"the columns path,label"
        )
    several = not values and is_multilabel(list(manifest.classes), manifest.kind)
    split = ""
    if split_column:
        train, held_out, split = split_by_name(
            np.array(manifest.split_of, np.int32)[rows], list(manifest.splits), choosing=True
        )
    else:
        share = DEFAULT_VAL if val is None else val
        # Where images have several classes, or numbers, what they have in common is no class to hold a share of.
        alike = np.zeros(len(rows), np.int32) if several or values else labels[rows]
        train, held_out = split_by_share(alike, share, seed, None if copies is None else copies[rows])
    train, held_out = rows[train], rows[held_out]
    if several or values:
        return _several(manifest, labels, train, held_out, split, values=values)
    present = np.unique(labels[train])
    if len(present) < 2:
        named = ", ".join(repr(manifest.classes[label]) for label in present)
        raise LabelError(f"{manifest.source}: two classes or more are needed; to train on: {named}")
    compact = np.full(len(manifest.classes) + 1, -1, np.int32)  # the last is for label -1
    compact[present] = np.arange(len(present), dtype=np.int32)
    known, unlearnt = _divided(compact[labels][held_out] >= 0, labels, held_out, manifest)
    return Task(compact[labels], [manifest.classes[k] for k in present], train, known, split=split, unlearnt=unlearnt)


def _divided(
    known: npt.NDArray[np.bool_], labels: npt.NDArray[np.int32], rows: Rows, manifest: Manifest
) -> tuple[Rows, tuple[int, str]]:
    """The rows that are known, and how many are not and what one of them is labelled."""
    others = rows[~known]
    return rows[known], (len(others), manifest.classes[labels[others[0]]] if len(others) else "")


def _several(
    manifest: Manifest, labels: npt.NDArray[np.int32], train: Rows, held_out: Rows, split: str, *, values: bool
) -> Task:
    """Of images with several classes each, or with numbers."""
    names = list(manifest.classes)
    if values:
        numbers = values_among(names, labels, str(manifest.source))
        count = numbers.shape[1]
        named = [f"value{place + 1}" if count > 1 else "value" for place in range(count)]
        return Task(numbers, named, train, held_out, split=split)
    classes = classes_of([names[label] for label in np.unique(labels[train])], multilabel=True)
    if len(classes) < 2:
        raise LabelError(f"{manifest.source}: two classes or more are needed; to train on: {classes[0]!r}")
    members = labels_among(classes, names, labels, multilabel=True)
    known, unlearnt = _divided(is_known(members[held_out]), labels, held_out, manifest)
    return Task(members, classes, train, known, split=split, unlearnt=unlearnt)


def undivided(manifest: Manifest, by: str | None, *, reporter: Reporter = SILENT) -> Rows:
    """(N,) which images must not be on two sides of a split: of the same bytes or group; the first of them.

    Args:
        by: the pattern of `--group-by`.
    """
    found = copies_in(manifest, reporter=reporter)
    if manifest.groups:
        found = united(found, named_groups(manifest.groups))
    return found if by is None else united(found, groups_among(manifest.paths, by))
