"""`featx weights`: which pretrained weights are at hand, and fetching others before a machine goes offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featx.errors import UsageError
from featx.networks.download import cache_folder, fetch_weights
from featx.networks.registry import backbone_names
from featx.networks.weights import weights_of
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, table


@dataclass(frozen=True)
class WeightsRow:
    """Default weights of one network.

    Attributes:
        where: "shipped" with featx, "cached" on this machine, or "downloadable".
        bytes: of the file; None where it would have to be asked for.
        path: of the file, or its address.
    """

    backbone: str
    weights: str
    where: str
    bytes: int | None
    path: str


@dataclass(frozen=True)
class WeightsReport(Report):
    """The networks and where their default weights are."""

    rows: list[WeightsRow]

    def lines(self) -> list[str]:
        at_hand = [row for row in self.rows if row.where != "downloadable"]
        others = [row.backbone for row in self.rows if row.where == "downloadable"]
        cells = [[r.backbone, r.weights, r.where, format_bytes(r.bytes or 0), r.path] for r in at_hand]
        text = table(["network", "weights", "", "size", "file"], cells, left=3) if cells else ["none at hand"]
        if others:
            text.append(f"to be downloaded when needed, or before with featx weights fetch: {', '.join(others)}")
        return text


def list_weights() -> WeightsReport:
    """Where the default weights of every network are."""
    return WeightsReport([row for name in backbone_names() if (row := _row(name)) is not None])


def fetch_all(names: Sequence[str], *, reporter: Reporter = SILENT) -> WeightsReport:
    """Download the default weights of some networks, and check those that are there already.

    Raises:
        UnknownBackbone: no such network.
        WeightsUnavailable, WeightsMismatch, DiskError: as `featx.networks.download.fetch_weights`.
    """
    if not names:
        raise UsageError("name the networks whose weights to fetch, as in: featx weights fetch alexnet vgg16")
    sources = [weights_of(name, "default") for name in names]
    for source in sources:
        if source.url is not None:
            fetch_weights(source.url, reporter.download)
    return WeightsReport([row for name in names if (row := _row(name)) is not None])


def _row(name: str) -> WeightsRow | None:
    """None for weights that should be in the package and are not."""
    try:
        source = weights_of(name, "default")
    except UsageError:
        return None
    if source.file is not None:
        return WeightsRow(name, "Tiny ImageNet", "shipped", source.file.stat().st_size, str(source.file))
    url, weights = str(source.url), source.name.split(".")[-1]
    cached = cache_folder() / url.rsplit("/", 1)[-1]
    if cached.is_file():
        return WeightsRow(name, weights, "cached", cached.stat().st_size, str(cached))
    return WeightsRow(name, weights, "downloadable", None, url)
