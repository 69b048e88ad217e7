"""`featx plot`: several probes in one picture, beside published numbers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.artifacts.probe_folder import ProbeFolder
from featx.errors import FileFormatError, UsageError
from featx.figures.layer_accuracy import Line, draw_lines
from featx.options.analysis import REFERENCES, PlotConfig
from featx.options.heads import PROBED
from featx.runtime.files import disk_errors, replacing
from featx.runtime.report import Report

# Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, Table 6 (arXiv:1311.2901v3, Table
# 7): layer -> mean accuracy and deviation in %, by head; their layers 1 to 5 and 7 by the names of AlexNet's.
_ZEILER_101 = {
    "svm": {"conv1": (44.8, 0.7), "conv2": (66.2, 0.5), "conv3": (72.3, 0.4), "conv4": (76.6, 0.4),
            "conv5": (86.2, 0.8), "fc7": (85.5, 0.4)},
    "softmax": {"conv5": (82.9, 0.4), "fc7": (85.4, 0.4)},
}  # fmt: skip
_ZEILER_256 = {
    "svm": {"conv1": (24.6, 0.4), "conv2": (39.6, 0.3), "conv3": (46.0, 0.3), "conv4": (51.3, 0.1),
            "conv5": (65.6, 0.3), "fc7": (71.7, 0.2)},
    "softmax": {"conv5": (65.7, 0.5), "fc7": (72.6, 0.1)},
}  # fmt: skip
_PUBLISHED = {
    "zeiler2014": ("Zeiler & Fergus 2014, Caltech-101", _ZEILER_101),
    "zeiler2014-256": ("Zeiler & Fergus 2014, Caltech-256", _ZEILER_256),
}


@dataclass(frozen=True)
class PlotReport(Report):
    """A picture that was drawn."""

    output: Path
    lines_drawn: list[str]

    def lines(self) -> list[str]:
        return [f"{self.output}: {', '.join(self.lines_drawn)}"]


def plot_probes(
    probes: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: PlotConfig | None = None,
) -> PlotReport:
    """Draw the accuracies of several probes by layer, a line for each probe and head.

    Args:
        probes: folders of `probe_layers`. Layers are in the order of the first probe that has them.
        output: NAME.png, .svg or .pdf.

    Raises:
        FileFormatError: a folder holds no finished probe.
        UsageError: none has the head asked for; another file is there.
    """
    config, target = config or PlotConfig(), Path(output)
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"-o {target.name}: a picture is drawn; call it {target.stem}.png, .svg or .pdf")
    drawn: list[Line] = []
    chance: set[float] = set()
    for path in map(Path, probes):
        stored = ProbeFolder(path).read()
        if stored is None or stored.result is None:
            raise FileFormatError(f"{path} holds no finished probe; featx probe FEATURES -o {path} makes one")
        report = stored.result
        chance.add(report.chance)
        for head in report.heads:
            if config.heads is None or head in config.heads.split(","):
                of_head = {row.layer: (row.accuracy, row.deviation) for row in report.rows if row.head == head}
                drawn.append(Line(f"{path.name}, {PROBED[head]}", of_head))
    if not drawn:
        raise UsageError(f"none of these probes has --heads {config.heads}")
    if config.reference is not None:
        name, published = _PUBLISHED[config.reference]
        for head, numbers in published.items():
            if config.heads is None or head in config.heads.split(","):
                values = {layer: (mean / 100, spread / 100) for layer, (mean, spread) in numbers.items()}
                drawn.append(Line(f"{name}, {PROBED[head]}", values, published=True))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"picture{target.suffix.lower()}"
        draw_lines(drawn, chance.pop() if len(chance) == 1 else None, made, config.title or "accuracy by layer")
        content = made.read_bytes()
    with disk_errors(target):
        if target.exists() and target.read_bytes() != content:
            raise UsageError(f"{target} is there and is another file; choose another name with -o, or delete it")
    with replacing(target) as partial:
        partial.write_bytes(content)
    return PlotReport(target, [line.name for line in drawn])


assert set(_PUBLISHED) == set(REFERENCES)
