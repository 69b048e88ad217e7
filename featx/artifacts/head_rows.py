"""Which rows of a features file a head is trained and tested on; the same again whenever it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featx.errors import LabelError, UsageError
from featx.heads.labels import labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.quality.metrics import LabelMetrics, Metrics
from featx.heads.splits import Rows, copies_of, joined, split_by_name, split_by_share, split_per_class, united
from featx.heads.trained_on import Hashes, count_among
from featx.images.contents import clips_among, groups_among, named_groups
from featx.networks.run_folder import is_run, read_run, trained_on
from featx.options.heads import FitConfig
from featx.runtime.text import plural
from featx.store.reader import Features, flat_rows

DEFAULT_TEST = 0.2


def kept_together(
    features: Features, rows: Rows, by: str | None = None, *, near: float | None = None, layer: str = ""
) -> Rows:
    """(n,) which rows must not be on two sides of a split, of the same bytes, clip or group: the first of them.

    Groups are those of the list's own column, and of:

    Args:
        by: the pattern of `--group-by`.
        near: the cosine of `--near-duplicates`, of the features of `layer`.
    """
    paths = [features.raw_paths[row] for row in rows.tolist()]
    alike = united(copies_of(features.sha256[rows]), clips_among(paths))
    if features.groups:
        alike = united(alike, named_groups([features.groups[row] for row in rows.tolist()]))
    if by is not None:
        alike = united(alike, groups_among(paths, by))
    if near is None:
        return alike
    from featx.heads.selection.near_duplicates import MOST_PAIRS, neighbourhood
    from featx.runtime.device import choose_device

    pairs = neighbourhood(flat_rows(features[layer]), rows, near, 0, choose_device("auto")).pairs
    if len(pairs) == MOST_PAIRS:
        raise UsageError(
            f"--near-duplicates {near:g}: {features.path} has more than {MOST_PAIRS:,} pairs as similar in {layer}; "
            f"give a higher cosine"
        )
    return united(alike, joined(pairs, len(rows)))


def split_rows(
    features: Features, rows: Rows, copies: Rows, config: FitConfig, multilabel: bool
) -> tuple[Rows, Rows]:
    """Rows of the file to train and to test on; copies of an image stay on one side, but for the user's own split.

    Raises:
        LabelError: there are none, or a class has too few.
    """
    if not len(rows):
        raise LabelError(
            f"{features.path} has no labelled images: put them into one folder per class, or list them in a CSV with "
            f"the columns path,label, and extract again"
        )
    labels = features.labels[rows]
    if config.split_column:
        train, test, _ = split_by_name(features.split_of[rows], features.splits)
    elif config.per_class is not None:
        exact = copies_of(features.sha256[rows])
        train, test = split_per_class(
            labels, config.per_class, config.seed, features.classes, copies=exact, groups=copies
        )
    else:
        share = DEFAULT_TEST if config.test is None else config.test
        # Where images have several classes, what they have in common is no class to hold a share of.
        train, test = split_by_share(np.zeros_like(labels) if multilabel else labels, share, config.seed, copies)
    return rows[train], rows[test]


def networks_images(features: Features) -> Hashes | None:
    """The images that the network of some features was fine-tuned on, as `remember` gives them; None if not known."""
    made = features.provenance
    name = str(made.get("backbone", ""))
    if not is_run(name) or read_run(name).weights_sha256 not in ("", made["weights"]["sha256"]):
        return None
    return trained_on(Path(name))


def note_on_networks_images(features: Features, test: Rows) -> str | None:
    """What to say if images to test on are among those that the network of the features was fine-tuned on."""
    count = count_among(features.sha256[test], networks_images(features))
    if not count:
        return None
    return (
        f"{count:,} of {plural(len(test), 'test image')} {'is' if count == 1 else 'are'} among those that "
        f"{features.provenance['backbone']} was fine-tuned on: the accuracy is too high"
    )


def measure_again(head: LinearHead, features: Features, config: FitConfig) -> Metrics | LabelMetrics | None:
    """The measure of a head's report, computed again; None if there was nothing to test on."""
    rows = features.usable()
    together = kept_together(features, rows, config.group_by, near=config.near_duplicates, layer=head.layer)
    _, test = split_rows(features, rows, together, config, head.multilabel)
    labels = labels_among(head.classes, features.classes, features.labels, head.multilabel)
    known = test if head.multilabel else test[labels[test] >= 0]
    if not len(known):
        return None
    values = flat_rows(features[head.layer])
    return head.measure(values[known], labels[known])
