"""`featx layers`: which layers a network has, under which names, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from featx.networks.backbone import Backbone, LayerInfo
from featx.networks.external.code import trust_code
from featx.options.extraction import LayersConfig
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, table

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class LayersReport(Report):
    """The layers of a network for square inputs of `side` pixels."""

    backbone: str
    side: int
    layers: list[LayerInfo]

    def lines(self) -> list[str]:
        header = [
            "layer",
            "node",
            "ReLU",
            "shape",
            "axes",
            "values",
            "float32",
            "sees",
            "stride",
            "params",
            "mult-adds",
        ]
        rows = [
            [
                row.name,
                row.node,
                row.relu if row.relu != "none" else "-",
                "x".join(map(str, row.shape)),
                row.layout,
                f"{row.values:,}",
                format_bytes(row.bytes_per_image),
                _extent(row.receptive_field, row.sees),
                _extent(row.stride, "-"),
                _count(row.parameters),
                _count(row.multiply_adds),
            ]
            for row in self.layers
        ]
        return [
            f"{self.backbone}, {self.side} x {self.side} pixels; sees and stride in input pixels, mult-adds from the "
            f"pixels up to the layer",
            *table(header, rows, left=4),
            "before a ReLU: NAME:pre; probabilities: prob; any node or module name works too",
        ]


def _extent(pair: tuple[int, int] | None, otherwise: str) -> str:
    if pair is None:
        return otherwise
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _count(value: int) -> str:
    """
    >>> _count(61_100_840), _count(714)
    ('61.1 M', '714')
    """
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return str(value)


def list_layers(backbone: str, config: LayersConfig | None = None) -> LayersReport:
    """The table of a network's layers.

    For AlexNet and VGG under their literature names; for other networks every node of the graph.

    Raises:
        UnknownBackbone: torchvision has no such classifier.
        UsageError: the network cannot take inputs of that size.
    """
    trust_code(backbone)
    described = Backbone(backbone, (config or LayersConfig()).crop)
    return LayersReport(backbone, described.side, described.describe(described.names.main))
