"""`featx weights`: which pretrained weights are at hand, and fetching others before a machine goes offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featx.errors import UsageError
from featx.networks.construct import backbone_names, published_weights, refuse_unknown
from featx.networks.mini import MINI_NAMES, shipped_weights
from featx.networks.weights import cache_folder, fetch_weights
from featx.progress import SILENT, Reporter, format_bytes
from featx.report import Report, table


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
    return WeightsReport([_row(name) for name in backbone_names() if name not in MINI_NAMES or _is_shipped(name)])


def fetch_all(names: Sequence[str], *, reporter: Reporter = SILENT) -> WeightsReport:
    """Download the default weights of some networks, and check those that are there already.

    Raises:
        UnknownBackbone: no such network.
        WeightsUnavailable, WeightsMismatch, DiskError: as `featx.networks.weights.fetch_weights`.
    """
    if not names:
        raise UsageError("name the networks whose weights to fetch, as in: featx weights fetch alexnet vgg16")
    for name in names:
        refuse_unknown(name)
    for name in names:
        if name not in MINI_NAMES:
            fetch_weights(published_weights(name).url, reporter.download)
    return WeightsReport([_row(name) for name in names])


def _is_shipped(name: str) -> bool:
    return shipped_weights(name).is_file()


def _row(name: str) -> WeightsRow:
    if name in MINI_NAMES:
        path = shipped_weights(name)
        return WeightsRow(name, "Tiny ImageNet", "shipped", path.stat().st_size, str(path))
    published = published_weights(name)
    cached = cache_folder() / published.url.rsplit("/", 1)[-1]
    if cached.is_file():
        return WeightsRow(name, published.name, "cached", cached.stat().st_size, str(cached))
    return WeightsRow(name, published.name, "downloadable", None, published.url)
