"""`featx extract`: a source of images becomes a features file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featx.artifacts.features_file import FeaturesFile, refuse_other_images
from featx.distributed.shards import parse_shard
from featx.distributed.work_queue import WorkQueue
from featx.errors import UsageError
from featx.extraction.recipe import default_layer
from featx.extraction.reduction.projection import kept_in
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.images.sources.video.clips import clips_of
from featx.networks.external.code import code_of, trust_code
from featx.networks.weights_file import weights_file
from featx.options.extraction import ExtractConfig
from featx.runtime.files import disk_errors, identity
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, format_duration, plural
from featx.status import Failure, Status
from featx.store.reader import Features

if TYPE_CHECKING:
    from featx.extraction.pipeline import Stages


@dataclass(frozen=True)
class ExtractReport(Report):
    """What an extraction did.

    Attributes:
        images, done, failed: rows of the file; of these successful; of these failed.
        computed: images of this run; the others were there already.
        seconds, images_per_second: of this run.
        bound_by: "decode", "network" or "disk", whatever took most of the workers' time; None if nothing ran.
        shares: stage -> share of the workers' time.
        turned: images with an EXIF orientation other than upright.
        skipped: reason -> things in the source that are no images.
    """

    output: Path
    layers: dict[str, tuple[int, ...]]
    images: int
    done: int
    failed: int
    computed: int
    seconds: float
    images_per_second: float
    bound_by: str | None
    shares: dict[str, float]
    turned: int
    exif: bool
    skipped: dict[str, int]
    failures: list[Failure]
    bytes: int

    def lines(self) -> list[str]:
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.layers.items())
        total = plural(self.images, "image")
        text = [f"{self.output}: {self.done:,} of {total}, {format_bytes(self.bytes)}; {shapes}"]
        if self.computed:
            stages = ", ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items())
            text.append(
                f"{plural(self.computed, 'image')} in {format_duration(self.seconds)}, "
                f"{self.images_per_second:.1f}/s; "
                f"bound by {self.bound_by} ({stages})"
            )
        else:
            text.append(ALREADY_THERE)
        if self.turned:
            applied = "it was applied" if self.exif else "it was not applied (--exif applies it)"
            text.append(f"{plural(self.turned, 'image')} with an EXIF orientation; {applied}")
        for reason, count in self.skipped.items():
            text.append(f"skipped: {count:,} {reason}")
        if self.failed:
            text.append(f"{plural(self.failed, 'image')} failed; NaN in the file, see featx inspect {self.output}")
        return text


def extract_features(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExtractConfig | None = None,
    *,
    queue: WorkQueue | None = None,
    reporter: Reporter = SILENT,
) -> ExtractReport:
    """Compute layers of a network for all images of a source and store them in an HDF5 file.

    Row i of every dataset in the file is image i of the source. The same call again resumes a run that was
    interrupted, or does nothing if the file is finished.

    Args:
        source: a folder, a text list, a CSV (`path,label[,split][,group]`) or a zip.
        output: the features file; NAME.partial until it is finished.
        config: what to extract and how; AlexNet's fc7 by default.
        queue: of the processes that fill the file together (`join_group`); None for one alone.

    Raises:
        UsageError: an unknown network, layer, weights, device; a source without images.
        PlanMismatch: the output exists and was made with other settings, or from other images of the same names.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        DiskError: it does not fit, or the disk failed.
        Interrupted: SIGINT or SIGTERM came, or another process of the group failed; everything finished is kept.
    """
    config, output = config or ExtractConfig(), Path(output)
    trust_code(config.backbone)
    config = replace(config, layers=config.layers or default_layer(config.backbone))
    if (config.update or config.overwrite) and (config.shard is not None or queue is not None):
        flag = "--update" if config.update else "--overwrite"
        raise UsageError(f"{flag} works in one process, on a whole file; leave out --shard, or start one process")
    if (config.reduce or "").startswith("pca:") and (config.shard is not None or queue is not None):
        raise UsageError(
            f"--reduce {config.reduce} is fitted by one process: fit it on a part of the images, and name its file "
            f"for the rest: --reduce FILE.h5"
        )
    shard = None if config.shard is None else parse_shard(config.shard)
    if shard is not None:
        output = shard.path(output)
    manifest = scan(source_of(source, config), follow_links=config.follow_links)
    with disk_errors(output):
        if output.is_symlink():  # it means the file it points to
            output = Path(os.path.realpath(output))
        before = identity(output)
    is_first = queue is None or queue.is_first  # one process's word is enough
    found = FeaturesFile(output, reporter if is_first else SILENT).take_as_requested(
        config.recorded(),
        manifest,
        shard=None if shard is None else shard.describe(manifest.digest, len(manifest)),
        weights_file=weights_file(config.backbone, config.weights),
        code=code_of(config.backbone),
        projections=kept_in(config.reduce),
    )
    if found is not None and not (config.retry_failed and found[0].failures()):
        if is_first:
            refuse_other_images(*found, reporter)
        return report_on(found[0], manifest, config)
    from featx.extraction.job import ExtractionJob

    job = ExtractionJob(manifest, output, config, shard=shard, queue=queue, before=before, reporter=reporter)
    done = job.run()
    return report_on(done.features, manifest, config, done.computed, done.seconds, done.stages)


def source_of(source: str | os.PathLike[str], config: ExtractConfig) -> str | os.PathLike[str]:
    """The source that is meant, of videos with `--frames`."""
    if config.frames is None:
        return source
    if clips_of(Path(source)) is not None:
        raise UsageError(f"{source} says already how many frames; leave out --frames")
    return f"frames:{config.frames}:{os.fspath(source)}"


def report_on(
    features: Features,
    manifest: Manifest,
    config: ExtractConfig,
    computed: int = 0,
    seconds: float = 0.0,
    stages: Stages | None = None,
) -> ExtractReport:
    return ExtractReport(
        output=features.path,
        layers={name: spec.shape for name, spec in features.layers.items()},
        images=len(features),
        done=features.count(Status.DONE),
        failed=int((features.status > Status.DONE).sum()),
        computed=computed,
        seconds=seconds,
        images_per_second=computed / seconds if seconds else 0.0,
        bound_by=stages.bound_by if stages and computed else None,
        shares=stages.shares() if stages else {},
        turned=int((features.orientation > 1).sum()),
        exif=config.exif,
        skipped=manifest.skipped,
        failures=features.failures(),
        bytes=features.path.stat().st_size,
    )
