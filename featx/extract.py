"""`featx extract`: a source of images becomes a features file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featx.atomic import disk_errors
from featx.config import ExtractConfig
from featx.errors import FileFormatError, UsageError
from featx.images.scan import Manifest, scan
from featx.lean_import import importing
from featx.networks.runs import is_run, read_run
from featx.progress import ALREADY_THERE, SILENT, Reporter, format_bytes, format_duration
from featx.report import Report
from featx.same_images import refuse_other_images
from featx.shards import Shard, parse_shard
from featx.store.reader import Failure, Features
from featx.store.schema import DONE
from featx.together import Group

if TYPE_CHECKING:
    from featx.resident import ResidentLayers
    from featx.streaming import Stages


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
        text = [f"{self.output}: {self.done:,} of {self.images:,} images, {format_bytes(self.bytes)}; {shapes}"]
        if self.computed:
            stages = ", ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items())
            text.append(
                f"{self.computed:,} images in {format_duration(self.seconds)}, {self.images_per_second:.1f}/s; "
                f"bound by {self.bound_by} ({stages})"
            )
        else:
            text.append(ALREADY_THERE)
        if self.turned:
            turned = "turned as their EXIF says" if self.exif else "not turned (--exif turns them)"
            text.append(f"{self.turned:,} images have an EXIF orientation; {turned}")
        for reason, count in self.skipped.items():
            text.append(f"left out: {count:,} {reason}")
        if self.failed:
            text.append(f"{self.failed:,} images failed and are NaN in the file: featx inspect {self.output}")
        return text


def extract_features(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExtractConfig | None = None,
    *,
    group: Group | None = None,
    resident: ResidentLayers | None = None,
    reporter: Reporter = SILENT,
) -> ExtractReport:
    """Compute layers of a network for all images of a source and store them in an HDF5 file.

    Row i of every dataset in the file is image i of the source. The same call again resumes a run that was
    interrupted, or does nothing if the file is finished.

    Args:
        source: a folder, a text list, a CSV (path,label[,split]) or a zip.
        output: the features file; NAME.partial until it is finished.
        config: what to extract and how; AlexNet's fc7 by default.
        group: the processes that fill the file together (`featx.together.join_group`); None for one alone.
        resident: where a GPU leaves the layers as well, for a head that is fitted next.

    Raises:
        UsageError: an unknown network, layer, weights, device; a source without images.
        PlanMismatch: the output exists and belongs to another plan, or to other images of the same names.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        DiskError: it does not fit, or the disk failed.
        Interrupted: SIGINT or SIGTERM came, or another process of the group failed; everything finished is kept.
    """
    config, output = config or ExtractConfig(), Path(output)
    shard = None if config.shard is None else parse_shard(config.shard)
    if shard is not None:
        output = shard.path(output)
    manifest = scan(source, follow_links=config.follow_links)
    with disk_errors(output):
        if output.is_symlink():  # it means the file it points to
            output = Path(os.path.realpath(output))
        before = identity(output)
    if before is not None:
        finished = _take_finished(output, manifest, config, shard)
        if finished is not None:
            features, images = finished
            if group is None or group.is_first:  # one process's word is enough
                refuse_other_images(features, images, reporter)
            return report_on(features, manifest, config, 0, 0.0, None)
    with importing():
        from featx.extracting import Extraction

    return Extraction(
        manifest, output, config, shard=shard, group=group, before=before, resident=resident, reporter=reporter
    ).go()


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # whoever makes it says what is wrong
    return found.st_ino, found.st_mtime_ns


def _take_finished(
    output: Path, manifest: Manifest, config: ExtractConfig, shard: Shard | None
) -> tuple[Features, Manifest] | None:
    """A file that needs no work and its images, without loading torch; None if something is left to be looked at."""
    try:
        features = Features(output)
    except FileFormatError as error:
        raise FileFormatError(f"{error}. It is in the way: choose another output with -o") from error
    if not features.complete:
        raise UsageError(f"{output} is an unfinished file under a finished file's name; rename or delete it")
    if config.retry_failed and features.failures():
        return None
    if features.provenance["request"] != config.recorded():
        return None
    part = None if shard is None else shard.describe(manifest)
    if features.provenance.get("shard") != part or (
        part is None and features.provenance["images"] != manifest.digest
    ):
        return None
    weights_file = read_run(config.backbone).weights if is_run(config.backbone) else Path(config.weights)
    if weights_file.suffix in (".pth", ".pt", ".safetensors") and weights_file.is_file():
        import hashlib

        with weights_file.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != features.provenance["weights"]["sha256"]:
                return None
    if shard is not None:
        place_of = {path: row for row, path in enumerate(manifest.paths)}
        rows = [place_of.get(path, -1) for path in features.raw_paths]
        if -1 in rows:
            return None
        return features, manifest.part(rows)
    return features, manifest


def report_on(
    features: Features,
    manifest: Manifest,
    config: ExtractConfig,
    computed: int,
    seconds: float,
    stages: Stages | None,
) -> ExtractReport:
    return ExtractReport(
        output=features.path,
        layers={name: spec.shape for name, spec in features.layers.items()},
        images=len(features),
        done=features.count(DONE),
        failed=int((features.status > DONE).sum()),
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
