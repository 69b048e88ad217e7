"""`featx finetune`: retrain a network on labelled images, with a learning rate for every layer."""

from __future__ import annotations

import contextlib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from featx.artifacts.artifact import installed_versions
from featx.artifacts.finetuned_run import FinetunedRun, FinetuneReport, request_of
from featx.errors import UsageError
from featx.heads.selection.class_weights import recorded_weights
from featx.images.sources.scan import scan
from featx.networks.external.code import trust_code
from featx.networks.run_folder import is_run, read_run
from featx.options.training import FinetuneConfig
from featx.runtime.environment import read_environment
from featx.runtime.files import locked_folder
from featx.runtime.progress import SILENT, Reporter


def finetune_network(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: FinetuneConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FinetuneReport:
    """Retrain a network on the labelled images of a source; the run's folder is a backbone itself.

    The same call again resumes where an interrupted one stopped, to the same weights, or does nothing if the run
    is finished.

    Args:
        source: as for `extract_features`, with labels.
        output: the run's folder.

    Raises:
        UsageError and its children: rates that name no layer or leave one out, labels that do not fit.
        PlanMismatch: the folder holds a run with other settings, or on other images of the same names.
        TooManyBadImages, DiskError, Interrupted: as `extract_features`.
        Diverged: the loss became NaN; the last good checkpoint is kept.
    """
    given, folder = config or FinetuneConfig(), Path(output)
    given = given if given.continue_epochs is None else _continued(given)
    config = _with_variant(given) if given.without or given.widen else given
    manifest = scan(source, follow_links=config.follow_links)
    is_first = read_environment().is_first  # one process's word is enough
    trust_code(config.backbone)
    plan = {"request": request_of(config), "images": manifest.digest, **installed_versions()}
    finished = FinetunedRun(folder, reporter if is_first else SILENT).take_finished(
        plan, manifest if is_first else None
    )
    if finished is not None:
        return finished
    from featx.distributed.process_group import join_process_group, leave_process_group
    from featx.networks.registry import refuse_unknown
    from featx.runtime.device import choose_device
    from featx.training.job import FinetuningJob

    refuse_unknown(config.backbone)
    if config.backbone != given.backbone:
        reporter.notes(_changes(given, config))
    group, device = join_process_group(choose_device(config.device))
    try:
        with locked_folder(folder) if group.is_first else contextlib.nullcontext():
            return FinetuningJob(manifest, folder, config, device, group, reporter).run()
    finally:
        leave_process_group()


_NOT_CONTINUED = ("backbone", "weights", "from_scratch", "without", "widen", "epochs", "continue_epochs", "snapshots")


_SPLITS = {"val", "split_column", "group_by"}


def _continued(config: FinetuneConfig) -> FinetuneConfig:
    """The options of a run, with those that are given now before them: of a config those that are no defaults.

    Raises:
        UsageError: -b names no finished run.
    """
    if not is_run(config.backbone):
        raise UsageError(f"--continue goes on with a finished run: -b RUN; {config.backbone} is none")
    run = read_run(config.backbone)
    run.refuse_unfinished()
    asked = {**run.plan["request"], "lr": run.plan["lr"]}
    asked["class_weights"] = run.plan.get("class_weights", asked.get("class_weights", "none"))
    known = {spec.name: asked[spec.name] for spec in fields(config) if spec.name in asked}
    default = {spec.name for spec in fields(config) if getattr(config, spec.name) == spec.default}
    given = getattr(config, "given", {spec.name for spec in fields(config)} - default)
    kept = {*given, *_NOT_CONTINUED}
    if given & _SPLITS:  # another way to split takes the place of the run's
        kept |= _SPLITS
    taken = {name: value for name, value in known.items() if name not in kept}
    if "class_weights" in taken:
        _refuse_other_class_weights(config.backbone, taken["class_weights"], run.plan["request"])
    assert config.continue_epochs is not None
    return replace(config, **taken, epochs=config.continue_epochs)


def _refuse_other_class_weights(run: str, given: str, request: dict[str, Any]) -> None:
    """Raise UsageError if the file with a run's class weights is gone or holds others now."""
    trained = str(request.get("class_weights"))
    if not trained.startswith("sha256 ") or (Path(given).is_file() and recorded_weights(given) == trained):
        return
    raise UsageError(
        f"{run} was trained with the class weights of {given}, which is gone or holds others now; give those to go "
        f"on with: --class-weights FILE, balanced or none"
    )


def _with_variant(config: FinetuneConfig) -> FinetuneConfig:
    """The options with the name of the network that layers were taken out of, or widened in."""
    from featx.networks.architectures.variants import variant_name

    without, widen = (
        [word.strip() for word in (given or "").split(",") if word.strip()]
        for given in (config.without, config.widen)
    )
    return replace(config, backbone=variant_name(config.backbone, without, widen), without=None, widen=None)


def _changes(before: FinetuneConfig, now: FinetuneConfig) -> list[str]:
    """What became of a network's layers, for people."""
    from featx.networks.architectures.variants import describe_changes
    from featx.networks.build import construct

    return describe_changes(construct(before.backbone), construct(now.backbone))
