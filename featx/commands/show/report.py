"""`featx report`: one page about features, trainings and probes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx import __version__
from featx.artifacts.probe_folder import REPORT as PROBE_REPORT
from featx.errors import FileFormatError, UsageError
from featx.images.sources.scan import scan
from featx.networks.run_folder import is_run
from featx.options.show import ReportConfig
from featx.runtime.files import is_hdf5, replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, plural
from featx.store.open import open_features

_MOST_PHOTOS = 8


@dataclass(frozen=True)
class PageReport(Report):
    """A page that was written."""

    output: Path
    sections: list[str]
    bytes: int

    def lines(self) -> list[str]:
        size = format_bytes(self.bytes)
        return [f"{self.output}: {plural(len(self.sections), 'section')}, {size}; open it in a browser"]


def write_report(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: ReportConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> PageReport:
    """Write one self-contained HTML page: what is inside, which layer is best, map, confusion, mistakes, units.

    Of more than 5,000 images 5,000 are mapped and measured, drawn at random.

    Args:
        inputs: features files, folders of trainings, folders of probes.
        output: the page; one that is there is replaced, another file is not.

    Raises:
        FileFormatError: an input is none of these, or not finished.
        UsageError and its children: no such layer; photos that cannot be used; the output is something else.
    """
    config, path = config or ReportConfig(), Path(output)
    from featx.reporting.page import Section, refuse_foreign_page, render

    refuse_foreign_page(path)
    if not inputs:
        raise UsageError("name a features file, the folder of a training, or that of a probe")
    from featx.reporting.of_features import FeaturesPart, saliency_section
    from featx.reporting.of_run import probe_sections, run_sections

    sections: list[Section] = []
    opened = None
    for one in map(Path, inputs):
        if is_run(str(one)):
            sections += run_sections(one)
        elif (one / PROBE_REPORT).is_file():
            sections += probe_sections(one)
        elif is_hdf5(one) or one.is_file():
            opened = open_features(one)
            part = FeaturesPart(opened, config.layer, config.seed, config.device, config.weights_file, reporter)
            sections += part.sections()
            if config.photos is not None:
                sections.append(saliency_section(_photos(Path(config.photos)), opened, part))
        else:
            raise FileFormatError(f"{one} is no features file, no folder of a training, and none of a probe")
    if opened is None and (config.layer or config.photos):
        flag = "--layer" if config.layer else "--photos"
        raise UsageError(f"{flag} is about a features file, and none was given")
    title = "featx report: " + ", ".join(Path(one).name for one in inputs)
    with replacing(path) as partial:
        partial.write_text(render(title, sections, f"featx {__version__}"), encoding="utf-8")
    return PageReport(path, [section.title for section in sections], path.stat().st_size)


def _photos(path: Path) -> list[Path]:
    """An image, or the first ones of a folder."""
    if not path.exists():
        raise UsageError(f"--photos {path}: there is nothing")
    if not path.is_dir():
        return [path]
    return [path / os.fsdecode(name) for name in scan(path).paths][:_MOST_PHOTOS]
