"""What an extraction will do, before it does it: the images, the network, the file and its size."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from featx.distributed.shards import Shard
from featx.errors import DiskError
from featx.extraction.distinct import DistinctImages
from featx.extraction.engine import Engine
from featx.extraction.provenance import hardware, versions
from featx.extraction.recipe import Recipe, extract_command
from featx.extraction.reduction.fit import sample_size
from featx.extraction.reduction.projection import PCA
from featx.heads.labels import count_text
from featx.images.contents import files_state
from featx.images.manifest import Manifest
from featx.images.sources.remote import place_of
from featx.images.sources.video.clips import refuse_unsuited
from featx.networks.registry import takes_flow
from featx.options.extraction import ExtractConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.text import format_bytes, plural, table
from featx.store.schema import FilePlan, partial_path


class ExtractionPlan:
    """The plan of one extraction.

    Attributes:
        recipe: what makes the features.
        whole: the images of the source.
        manifest: those of them that are to be done: the shard's, or all.
        distinct: each image of the manifest once; None if none is repeated.
    """

    def __init__(self, manifest: Manifest, output: Path, config: ExtractConfig, shard: Shard | None) -> None:
        """Args: as for `job.ExtractionJob`.

        Raises:
            UsageError: the network cannot do what is asked for.
            DiskError: the file will not fit.
        """
        self.output, self.config, self.shard = output, config, shard
        self.recipe = Recipe.from_config(config)
        self.whole, self.manifest = manifest, self._part_of(manifest)
        name = self.recipe.backbone.name
        refuse_unsuited(manifest, name, self.recipe.preprocess.crop, takes_flow=takes_flow(name))
        repeated = len(set(self.manifest.paths)) < len(self.manifest)
        self.distinct = DistinctImages(self.manifest) if repeated else None
        self._refuse_what_cannot_fit()

    def lines(self) -> list[str]:
        """What will be done, before it is."""
        manifest, recipe = self.manifest, self.recipe
        count = len(manifest)
        classes = f", {count_text(list(manifest.classes), manifest.kind)}" if manifest.classes else ", no labels"
        part = f" (part {self.shard} of {len(self.whole):,})" if self.shard else ""
        title = f"{plural(count, 'image')}{part}{classes}; {recipe.backbone.name}, weights {recipe.weights.name}, "
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
        facts = Facts(
            device=recipe.device.type,
            source_kind=manifest.kind,
            all_vectors=all(len(recipe.backbone.geometry_of(layer).shape) == 1 for layer in recipe.layers),
        )
        lines += notes_on(self.config, facts)
        if recipe.reduction is not None and recipe.reduction.method == PCA and not recipe.reduction.layers:
            lines.append(f"the PCA is fitted on {sample_size(recipe.reduction.components, count):,} images at random")
        if self.distinct is not None:
            repeats = plural(self.distinct.repeated, "entry repeats", "entries repeat")
            lines.append(f"{repeats} an image that stands before in the list; each image is computed once")
        if recipe.assumed is not None:
            lines.append(recipe.assumed)
        if recipe.preprocess.view_count > 1 and recipe.preprocess.resize == recipe.preprocess.crop:
            lines.append(
                f"note: images are resized to {recipe.preprocess.crop} pixels, the size of the crop: the views "
                f"differ along the longer side only. --resize with more gives them room"
            )
        if not count:
            lines.append("note: this part is empty: there are more parts than blocks of images; featx merge needs it")
        if recipe.weights.seed is not None:
            lines.append(
                "note: these weights are random: the features show the machinery, not what a network learned"
            )
        return lines

    def file(self, engine: Engine) -> FilePlan:
        """What is known of the file once the network is there."""
        manifest = self.manifest
        provenance: dict[str, Any] = {
            **self.recipe.to_dict(engine.weights_sha256),
            "request": self.config.recorded(),
            "command": extract_command(self.config),
            "source": {
                "path": place_of(manifest.source),
                "kind": manifest.kind,
                "files": files_state(manifest),
            },
            "images": manifest.digest,
            "count": len(manifest),
            "versions": versions(self.recipe.decode),
            "hardware": hardware(engine),
        }
        if self.shard is not None:
            provenance["shard"] = self.shard.describe(self.whole.digest, len(self.whole))
        return FilePlan(
            manifest.paths,
            manifest.labels,
            manifest.classes,
            manifest.split_of,
            manifest.splits,
            self.recipe.layer_specs(),
            _portable(provenance),
            self.recipe.reduction.arrays() if self.recipe.reduction else {},
            manifest.groups,
        )

    def _part_of(self, manifest: Manifest) -> Manifest:
        if self.shard is None:
            return manifest
        return manifest.part(self.shard.rows(len(manifest), self.recipe.batch_size))

    def _bytes_needed(self) -> int:
        rows = sum(spec.bytes_per_image for spec in self.recipe.layer_specs()) * len(self.manifest)
        reduction = self.recipe.reduction
        if reduction is None or reduction.method != PCA:
            return rows
        whole = replace(self.recipe, reduction=None).layer_specs()
        return rows + 4 * (reduction.components + 1) * sum(math.prod(spec.shape) for spec in whole)

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


def _portable(provenance: dict[str, Any]) -> dict[str, Any]:
    """The same with text that JSON can hold: undecodable bytes of a path as backslash escapes."""
    text: str = json.dumps(provenance).encode("ascii").decode()
    plain: dict[str, Any] = json.loads(text)
    return plain


def _existing_parent(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder
