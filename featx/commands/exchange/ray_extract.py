"""`featx.extract_with_ray`: the features of a source by actors of a Ray cluster, into a folder of Parquet files.

An actor is what `featx extract` is on one machine: threads that read, decode and compute, one network in memory. It
is given rows of the manifest, a few hundred at a time, and reads the images itself: what goes through Ray are numbers
of rows in, and features out. The blocks are made here, so that each is a whole number of the network's own blocks.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import FeatxError, FileFormatError, TooManyBadImages, UsageError, allow_more, bad_allowed
from featx.extraction.engine import Engine
from featx.extraction.pipeline import stream_features
from featx.extraction.plan import ExtractionPlan
from featx.extraction.recipe import Recipe, default_layer
from featx.images.block import Block
from featx.images.manifest import Manifest
from featx.images.sources.remote import place_of
from featx.images.sources.scan import scan
from featx.networks.external.code import trust_code
from featx.options.extraction import ExtractConfig
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import Stop
from featx.runtime.text import plural
from featx.status import Status
from featx.store.parquet_rows import PLAN, table_of_rows
from featx.store.schema import FilePlan

_BLOCKS_AT_ONCE = 16  # of the network's, in one of Ray's: long enough that its turn costs little


@dataclass(frozen=True)
class RayReport(Report):
    """What was computed.

    Attributes:
        output: the folder of Parquet files, which featx import makes a features file of.
        actors: that computed.
    """

    output: Path
    images: int
    failed: int
    actors: int

    def lines(self) -> list[str]:
        done = f"{plural(self.images, 'image')}, {self.failed:,} failed, by {plural(self.actors, 'actor')}"
        return [
            f"{self.output}: {done}",
            f"featx import {self.output} -o NAME.h5 makes a features file of them",
        ]


def extract_with_ray(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExtractConfig | None = None,
    *,
    actors: int | None = None,
    address: str | None = None,
    reporter: Reporter = SILENT,
) -> RayReport:
    """Extract features on a Ray cluster; every machine must see the images and the weights under the same paths.

    The rows are those of `featx extract`, byte for byte: `featx import OUTPUT -o NAME.h5` gives the same file. An
    image that cannot be used is a row of NaN with its reason. An actor that dies is replaced, and its rows are
    computed again. A job that fails as a whole leaves no OUTPUT and begins again.

    Args:
        source, config: as for `extract_features`; without shards and updates.
        output: a folder that is not there yet.
        actors: by default one for each machine, with all its cores; with GPUs one for each.
        address: of a cluster; by default the one this process is connected to or, without one, this machine.

    Raises:
        UsageError and its children: as `extract_features`; Ray is not installed; the output is there.
        TooManyBadImages: more images failed than `config.max_bad` allows; the output is kept.
    """
    ray = _ray()
    config, output = config or ExtractConfig(), Path(output)
    if config.shard is not None or config.update or config.overwrite:
        raise UsageError(
            "Ray shares out the work itself, and writes a new folder; leave out --shard, --update and --overwrite"
        )
    if config.frames is not None:
        raise UsageError("extract_with_ray takes videos as the source frames:N:PATH, without --frames")
    if config.reduce is not None:
        raise UsageError("extract_with_ray writes the layers as they are; leave out --reduce")
    if output.exists():
        raise UsageError(f"{output} is there already; choose another folder, or delete it")
    trust_code(config.backbone)
    config = replace(config, layers=config.layers or default_layer(config.backbone))
    manifest = scan(source, follow_links=config.follow_links)
    planned = ExtractionPlan(manifest, output, config, None)
    reporter.notes(planned.lines())
    engine = Engine(planned.recipe, reporter.download)
    plan = planned.file(engine)
    engine.close()
    if not ray.is_initialized():
        local = {} if address else {"_node_ip_address": "127.0.0.1"}
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
    gpus = int(planned.recipe.device.type == "cuda")
    machines = [node for node in ray.nodes() if node["Alive"]]
    count = actors or max(1, int(ray.cluster_resources().get("GPU", 0)) if gpus else len(machines))
    partial = output.with_name(f"{output.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        write_plan(partial / PLAN, plan, manifest, config)
        rows_at_once = _BLOCKS_AT_ONCE * planned.recipe.batch_size
        _computed(partial / PLAN, len(manifest), count, gpus, rows_at_once).write_parquet(str(partial.absolute()))
        failed = check_rows(partial, len(manifest))
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    allowed = bad_allowed(config.max_bad, len(manifest))
    if failed > allowed:
        raise TooManyBadImages(
            f"{failed:,} of {plural(len(manifest), 'image')} failed, --max-bad {config.max_bad:g} allows {allowed}; "
            f"the reasons are in {output}. Allow more with {allow_more(failed, len(manifest))}"
        )
    return RayReport(output, len(manifest), failed, count)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("this needs Ray: pip install 'featx[ray]'") from None
    return ray


def _computed(plan: Path, count: int, actors: int, gpus: int, rows_at_once: int) -> Any:
    """Ray's dataset of the features.

    Args:
        plan: the file that says what the job is; the actors read it.
    """
    ray = _ray()

    rows = ray.data.range(count, override_num_blocks=-(-count // rows_at_once))
    cores = int(ray.cluster_resources().get("CPU", 1)) // max(1, len([n for n in ray.nodes() if n["Alive"]]))
    return rows.map_batches(
        ExtractRows,
        batch_size=rows_at_once,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        # Less than there are: the tasks that hand out rows and write files need a core to begin at all.
        num_cpus=max(0.5, cores - 1) if cores > 1 else 0.5,
        num_gpus=gpus,
        fn_constructor_args=(str(plan.absolute()),),
    )


class ExtractRows:
    """An actor: numbers of rows in, a table of their features out."""

    def __init__(self, plan: str) -> None:
        """Args:

        plan: the file that `write_plan` has written.
        """
        known = json.loads(Path(plan).read_text(encoding="utf-8", errors="surrogateescape"))
        job = known["job"]
        config = ExtractConfig(**job["config"])
        trust_code(config.backbone)
        self._config = config
        paths = tuple(os.fsencode(path) for path in known["paths"])
        none = (-1,) * len(paths)
        root = Path(job["root"])
        self._manifest = Manifest(job["kind"], root, root, paths, none, (), none, ())
        self._engine = Engine(Recipe.from_config(config))

    def __call__(self, batch: dict[str, Any]) -> Any:
        rows: list[int] = [int(row) for row in batch["id"]]
        part = self._manifest.part(rows)
        outputs = self._engine.outputs
        features = {name: np.empty((len(rows), *shape), dtype) for name, (shape, dtype) in outputs.items()}
        about = {
            "status": np.zeros(len(rows), np.uint8), "sha256": np.zeros((len(rows), 32), np.uint8),
            "orientation": np.zeros(len(rows), np.uint8), "decoder": np.zeros(len(rows), np.uint8),
        }  # fmt: skip
        reasons: dict[int, str] = {}

        def keep(block: Block, found: dict[str, Any]) -> None:
            own = slice(block.first, block.first + len(block.status))
            for name, values in found.items():
                features[name][own] = values
            for name, values in about.items():
                values[own] = getattr(block, name)
            reasons.update({block.first + place: why for place, why in block.reasons.items()})

        stream_features(
            part, self._engine, keep, blocks=range(0, len(rows), self._engine.recipe.batch_size),
            workers=self._config.workers, stop=Stop(), image_timeout=self._config.image_timeout,
        )  # fmt: skip
        return table_of_rows(rows, part.paths, about, reasons, features)


def write_plan(path: Path, plan: FilePlan, manifest: Manifest, config: ExtractConfig) -> None:
    """Say what a job is: the features file it is for, and, for its actors, where the images are."""
    job = {"kind": manifest.kind, "root": place_of(manifest.root), "config": asdict(config)}
    described = {**asdict(plan), "paths": [os.fsdecode(name) for name in plan.paths], "job": job}
    path.write_text(json.dumps(described), encoding="utf-8", errors="surrogateescape")


def check_rows(folder: Path, count: int) -> int:
    """How many images failed, after seeing that every row is there once: a block that Ray has lost is an error."""
    import pyarrow.parquet as pq

    seen = np.zeros(count, np.int64)
    failed = 0
    for file in _files(folder):
        table = pq.read_table(file, columns=["row", "status"])
        np.add.at(seen, table["row"].to_numpy(), 1)
        failed += int((table["status"].to_numpy() != Status.DONE).sum())
    if (seen != 1).any():
        raise FeatxError(f"Ray gave {(seen == 0).sum():,} rows not at all and {(seen > 1).sum():,} more than once")
    return failed


def _files(folder: Path) -> Sequence[Path]:
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise FileFormatError(f"{folder} holds no Parquet files")
    return found
