"""`featx extract`: a source of images becomes a features file."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.atomic import disk_errors
from featx.config import ExtractConfig
from featx.errors import DiskError, FileFormatError, Interrupted, PlanMismatch, TooManyBadImages, UsageError
from featx.images.scan import Manifest, scan
from featx.networks.runs import is_run, read_run
from featx.options import command_line
from featx.progress import SILENT, Reporter, Stop, format_bytes, format_duration, graceful_stop
from featx.report import Report, printable, table
from featx.store.reader import Failure, Features
from featx.store.schema import DONE, FilePlan, differences, essence, partial_path
from featx.store.writer import FeatureWriter

if TYPE_CHECKING:
    from featx.activations import Stages
    from featx.recipe import Recipe

SHOWN_FAILURES = 3


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
            text.append("everything was there already; nothing to do")
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
    reporter: Reporter = SILENT,
) -> ExtractReport:
    """Compute layers of a network for all images of a source and store them in an HDF5 file.

    Row i of every dataset in the file is image i of the source. The same call again resumes a run that was
    interrupted, or does nothing if the file is finished.

    Args:
        source: a folder, a text list, a CSV (path,label[,split]) or a zip.
        output: the features file; NAME.partial until it is finished.
        config: what to extract and how; AlexNet's fc7 by default.

    Raises:
        UsageError: an unknown network, layer, weights, device; a source without images.
        PlanMismatch: the output exists and belongs to another plan.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        DiskError: it does not fit, or the disk failed.
        Interrupted: SIGINT or SIGTERM came; everything finished so far is kept.
    """
    config, output = config or ExtractConfig(), Path(output)
    manifest = scan(source, follow_links=config.follow_links)
    with disk_errors(output):
        if output.is_symlink():  # it means the file it points to
            output = Path(os.path.realpath(output))
        exists = output.exists()
    if exists:
        finished = _take_finished(output, manifest, config)
        if finished is not None:
            return finished
    return _Run(manifest, output, config, reporter).go()


def _take_finished(output: Path, manifest: Manifest, config: ExtractConfig) -> ExtractReport | None:
    """The report of a file that needs no work, without loading torch; None if something is left to be looked at."""
    try:
        features = Features(output)
    except FileFormatError as error:
        raise FileFormatError(f"{error}. It is in the way: choose another output with -o") from error
    if not features.complete:
        raise UsageError(f"{output} is an unfinished file under a finished file's name; rename or delete it")
    if config.retry_failed and features.failures():
        return None
    if features.provenance["request"] != config.recorded() or features.provenance["images"] != manifest.digest:
        return None
    weights_file = read_run(config.backbone).weights if is_run(config.backbone) else Path(config.weights)
    if weights_file.suffix in (".pth", ".pt", ".safetensors") and weights_file.is_file():
        import hashlib

        with weights_file.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != features.provenance["weights"]["sha256"]:
                return None
    return _report(features, manifest, config, 0, 0.0, None)


class _Run:
    """One extraction: the plan, the work, the account of it."""

    def __init__(self, manifest: Manifest, output: Path, config: ExtractConfig, reporter: Reporter) -> None:
        from featx.activations import Extractor
        from featx.networks.pooling import parse_pooling
        from featx.recipe import plan_recipe

        self.manifest, self.output, self.config, self.reporter = manifest, output, config, reporter
        self.recipe: Recipe = plan_recipe(
            backbone=config.backbone,
            layers=config.layers,
            weights=config.weights,
            pooling=parse_pooling(config.pool),
            precision=config.precision,
            dtype=config.dtype,
            device=config.device,
            batch_size=config.batch_size,
            resize=config.resize,
            crop=config.crop,
            squash=config.squash,
            exif=config.exif,
            mirror=config.mirror,
        )
        self._refuse_what_cannot_fit()
        for line in self.plan_lines():
            reporter.note(line)
        self.extractor = Extractor(self.recipe, reporter.download)
        self.plan = self._file_plan(self.extractor.weights_sha256)
        self.failed: list[str] = []
        self.lock = threading.Lock()

    def plan_lines(self) -> list[str]:
        """What will be done, before it is."""
        manifest, recipe = self.manifest, self.recipe
        count = len(manifest)
        classes = f", {len(manifest.classes)} classes" if manifest.classes else ", no labels"
        title = f"{count:,} images{classes}; {recipe.backbone.name}, weights {recipe.weights.name}, "
        title += f"{recipe.precision} on {recipe.device}, {recipe.batch_size} images per block"
        rows = [
            [
                spec.name,
                spec.node,
                spec.relu,
                spec.shape,
                spec.dtype,
                format_bytes(spec.bytes_per_image * count),
            ]
            for spec in recipe.layer_specs()
        ]
        lines = [title, *table(["layer", "node", "ReLU", "shape", "type", "in all"], rows, left=3)]
        free = shutil.disk_usage(_existing_parent(self.output)).free
        lines.append(f"{format_bytes(self._bytes_needed())} for {self.output}; {format_bytes(free)} are free there")
        if recipe.weights.seed is not None:
            lines.append(
                "note: these weights are random: the features show the machinery, not what a network learned"
            )
        return lines

    def _bytes_needed(self) -> int:
        return sum(spec.bytes_per_image for spec in self.recipe.layer_specs()) * len(self.manifest)

    def _refuse_what_cannot_fit(self) -> None:
        if self.output.exists() or partial_path(self.output).exists():
            return  # its space is reserved already
        needed, folder = self._bytes_needed(), _existing_parent(self.output)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskError(
                f"{self.output} needs {format_bytes(needed)}; {format_bytes(free)} are free in {folder}. Ask for "
                f"fewer or later layers, --pool avg, or --dtype float16, or choose another disk with -o"
            )

    def _file_plan(self, weights_sha256: str) -> FilePlan:
        from featx.activations import hardware, versions

        manifest = self.manifest
        provenance: dict[str, Any] = {
            **self.recipe.describe(weights_sha256),
            "request": self.config.recorded(),
            "command": command_line("extract", "SOURCE", self.config),
            "source": {"path": os.path.abspath(manifest.source), "kind": manifest.kind},
            "images": manifest.digest,
            "count": len(manifest),
            "versions": versions(),
            "hardware": hardware(self.extractor),
        }
        return FilePlan(
            manifest.paths,
            manifest.labels,
            manifest.classes,
            manifest.split_of,
            manifest.splits,
            self.recipe.layer_specs(),
            _portable(provenance),
        )

    def go(self) -> ExtractReport:
        if self.output.exists():
            self._compare_with_finished()
            if not (self.config.retry_failed and Features(self.output).failures()):
                return _report(Features(self.output), self.manifest, self.config, 0, 0.0, None)
            writer = FeatureWriter.open_failed(self.output, self.plan)
        else:
            writer = FeatureWriter.open(self.output, self.plan, retry_failed=self.config.retry_failed)
        with writer:
            return self._fill(writer)

    def _fill(self, writer: FeatureWriter) -> ExtractReport:
        from featx.activations import stream_features

        blocks = writer.pending_blocks(self.recipe.batch_size)
        started, before = time.perf_counter(), int((writer.status > 0).sum())
        if 0 < before < len(self.manifest):
            self.reporter.note(f"resuming: {before:,} of {len(self.manifest):,} images are there already")
        self.reporter.begin("extract", len(self.manifest), before)
        with graceful_stop() as stop:
            self._stop_if_too_many_bad(writer, stop)
            stages = stream_features(
                self.manifest,
                self.extractor,
                lambda block, features: self._store(writer, stop, block, features),
                blocks=blocks,
                workers=self.config.workers,
                stop=stop,
            )
        self.reporter.end()
        self._raise_if_too_many_bad(writer)
        if stop.signal is not None and writer.pending_blocks(1):
            left = len(writer.pending_blocks(1))
            raise Interrupted(
                f"stopped by signal {stop.signal}: {left:,} of {len(self.manifest):,} images are left. "
                f"Run the same command again to resume",
                128 + stop.signal,
            )
        writer.finish()
        seconds = time.perf_counter() - started
        return _report(
            Features(self.output), self.manifest, self.config, len(self.manifest) - before, seconds, stages
        )

    def _store(self, writer: FeatureWriter, stop: Stop, block: Any, features: dict[str, Any]) -> None:
        writer.write_block(
            block.first,
            features,
            status=block.status,
            sha256=block.sha256,
            orientation=block.orientation,
            reasons=block.reasons,
        )
        self.reporter.advance(len(block.status))
        if block.reasons:
            with self.lock:
                for place, reason in block.reasons.items():
                    self.failed.append(f"{self.manifest.name(block.first + place)}: {reason}")
            self._stop_if_too_many_bad(writer, stop)

    def _allowed(self) -> int:
        return math.floor(self.config.max_bad * len(self.manifest))

    def _stop_if_too_many_bad(self, writer: FeatureWriter, stop: Stop) -> None:
        if int((writer.status > DONE).sum()) > self._allowed():
            stop.set()

    def _raise_if_too_many_bad(self, writer: FeatureWriter) -> None:
        bad = int((writer.status > DONE).sum())
        if bad > self._allowed():
            partial = partial_path(self.output)
            examples = "; ".join(self.failed[:SHOWN_FAILURES]) or f"see featx inspect {partial}"
            if self.manifest.kind in ("list", "csv"):
                examples += f" (paths count from {printable(str(self.manifest.root))}, where the list is)"
            raise TooManyBadImages(
                f"{bad} of {len(self.manifest)} images are bad, --max-bad {self.config.max_bad:g} allows "
                f"{self._allowed()}: {examples}. What is done is kept in {partial}: mend the images and run again "
                f"with --retry-failed, or allow more with --max-bad 5%"
            )

    def _compare_with_finished(self) -> None:
        features = Features(self.output)
        have, want = essence(features.provenance), essence(self.plan.provenance)
        named = differences(have, want)
        if have["images"] != want["images"]:
            named = [
                _changed_images(features, self.manifest),
                *(n for n in named if not n.startswith(("images:", "count:"))),
            ]
        named = [n for n in named if not n.startswith("versions.")]
        if named:
            raise PlanMismatch(
                f"{self.output} exists and was made by another plan: {'; '.join(named[:3])}. "
                f"Choose another output with -o, or delete it"
            )


def _portable(provenance: dict[str, Any]) -> dict[str, Any]:
    """The same with text that JSON can hold: undecodable bytes of a path as backslash escapes."""
    import json

    text: str = json.dumps(provenance).encode("ascii").decode()
    plain: dict[str, Any] = json.loads(text)
    return plain


def _changed_images(features: Features, manifest: Manifest) -> str:
    have, want = set(features.raw_paths), set(manifest.paths)
    new, gone = sorted(want - have), sorted(have - want)
    parts = []
    for word, paths in (("new", new), ("gone", gone)):
        if paths:
            parts.append(f"{len(paths)} {word} (first: {os.fsdecode(paths[0])!r})")
    return "images: " + (", ".join(parts) or "the same, with other labels, splits or order")


def _existing_parent(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def _report(
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
