"""The options of the commands that bring features into other files."""

from __future__ import annotations

from dataclasses import dataclass

from featx.options.option import Config, option


@dataclass(frozen=True)
class AverageConfig(Config):
    """Options of `featx average`."""

    by: str | None = option(
        None, "What belongs together: a regular expression, whose first group (or all it finds) in a path names the "
        "group; by default the clips of videos.", metavar="REGEX",
    )  # fmt: skip


@dataclass(frozen=True)
class ExportConfig(Config):
    """Options of `featx export`."""

    layers: str | None = option(
        None, "Layers, separated by commas; by default all. CSV, TSV and NPY hold one.", "-l", metavar="LAYERS"
    )
    split: str | None = option(None, "Only the images of this split, as stored in the file.", metavar="NAME")
    done: bool = option(False, "Leave out the images that failed, whose rows are NaN.")
    weights_file: str | None = option(
        None, "For .onnx: where a head's network has its weights now, if they have moved.", metavar="FILE"
    )
    overwrite: bool = option(False, "Replace a file that is there.", recorded=False)
