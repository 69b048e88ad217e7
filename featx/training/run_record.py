"""config.json of a run: what is trained, from which weights, on which images; written before the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featx.artifacts.artifact import write_json
from featx.artifacts.finetuned_run import refuse_other_start, request_of
from featx.artifacts.same_images import record_of
from featx.extraction.provenance import versions
from featx.heads.splits import Rows
from featx.heads.trained_on import count_among, remember, together
from featx.images.contents import content_hashes, files_state
from featx.images.manifest import Manifest
from featx.images.preprocess import Preprocess
from featx.images.sources.remote import place_of
from featx.networks.run_folder import DESCRIPTION, FORMAT, SCHEMA, TRAINED_ON, is_run, read_run, trained_on
from featx.options.training import FinetuneConfig
from featx.runtime.files import replacing
from featx.runtime.progress import Reporter
from featx.runtime.text import plural
from featx.store.reader import Features


def describe_run(
    folder: Path,
    config: FinetuneConfig,
    manifest: Manifest,
    *,
    classes: list[str],
    preprocess: Preprocess,
    weights: dict[str, Any],
    lr: str,
    task: str,
) -> None:
    """Write down what a run is, or see that it is the one that was begun.

    Args:
        weights: spec and sha256 of those it starts from, and torchvision's name if they are published ones: the
            construction of a vision transformer depends on them.
        lr: the specification of the rates, policies expanded.
        task: see `Run`.

    Raises:
        PlanMismatch: the weights it began with are others now.
    """
    path, name = folder / DESCRIPTION, config.backbone
    plan = read_run(folder).plan if path.exists() else {}
    begun = plan.get("weights", weights)
    refuse_other_start(folder, begun, weights)
    described = {
        "format": FORMAT,
        "schema": SCHEMA,
        "backbone": read_run(name).backbone if is_run(name) else name,
        "classes": classes,
        **({} if task == "classes" else {"task": task}),
        "preprocess": preprocess.values(),
        "plan": {
            "request": request_of(config),
            "images": manifest.digest,
            **({"files": plan["files"]} if "files" in plan else {}),
            "weights": weights,
            **({"class_weights": config.class_weights} if config.class_weights != "none" else {}),
            "lr": lr,
            "source": place_of(manifest.source),
            **versions(),
        },
    }
    write_json(path, described)


def record_images(
    folder: Path, manifest: Manifest, train: Rows, val: Rows, features: list[Features], reporter: Reporter
) -> None:
    """Add the record of the images, once: by the hashes that the features have, or else by reading the files.

    Args:
        train, val: rows that are trained on, and validated on.
    """
    run = read_run(folder)
    if "files" in run.plan:
        return
    state = files_state(manifest)
    hashes = features[0].sha256 if features else content_hashes(manifest, reporter=reporter)
    asked = run.plan["request"]
    start = str(asked["backbone"])
    goes_on = is_run(start) and asked["weights"] == "default" and not asked["from_scratch"]
    before = trained_on(Path(start)) if goes_on else None
    if seen := count_among(hashes[val], before):
        reporter.note(
            f"note: {plural(seen, 'validation image')} {'is' if seen == 1 else 'are'} among those that {start} was "
            f"trained on: the validation accuracy is too high"
        )
    with replacing(folder / TRAINED_ON) as partial:
        partial.write_bytes(together(remember(hashes[train]), before).tobytes())
    described = {
        "format": FORMAT,
        "schema": SCHEMA,
        "backbone": run.backbone,
        "classes": run.classes,
        **({} if run.task == "classes" else {"task": run.task}),
        "preprocess": run.preprocess,
        "plan": {**run.plan, "files": record_of(state, hashes)},
    }
    write_json(folder / DESCRIPTION, described)
