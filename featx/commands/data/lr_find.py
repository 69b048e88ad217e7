"""`featx lr-find`: which learning rates suit a fine-tuning?"""

from __future__ import annotations

import csv
import os
import tempfile
from dataclasses import fields
from pathlib import Path

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.training_curves import draw_range_test
from featx.images.sources.scan import scan
from featx.options.training import FinetuneConfig, LrFindConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter

TABLE, PICTURE = "lr.csv", "lr.png"


def find_learning_rate(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: LrFindConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Train for a few hundred steps while all rates grow, and say where the loss falls fastest (Smith, WACV 2017).

    Nothing of the training is kept. Writes lr.csv (factor, loss, smooth) and lr.png. The suggestion is a factor on
    the rates of `config.lr`, and the specification that it makes.

    Raises:
        UsageError and its children: as `finetune_network`; fewer than ten steps before the loss grew out of hand.
        PlanMismatch: the folder holds something else.
    """
    from featx.distributed.process_group import ProcessGroup
    from featx.networks.external.code import trust_code
    from featx.networks.registry import refuse_unknown
    from featx.runtime.device import choose_device, strict_precision
    from featx.training.job import FinetuningJob
    from featx.training.learning_rates import scaled
    from featx.training.optimization.range_test import range_test

    config = config or LrFindConfig()
    manifest = scan(source, follow_links=config.follow_links)
    folder = ShownFolder(Path(output), [TABLE, PICTURE], "featx lr-find", reporter)
    plan = plan_of(config, without=("device",), show="lr-find", images=manifest.digest)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    trust_code(config.backbone)
    refuse_unknown(config.backbone)
    own = {spec.name for spec in fields(FinetuneConfig)}
    training = FinetuneConfig(**{name: value for name, value in vars(config).items() if name in own})
    with tempfile.TemporaryDirectory() as scratch:
        job = FinetuningJob(manifest, Path(scratch), training, choose_device(config.device), ProcessGroup(), reporter)
        try:
            trainer = job.prepare()
            reporter.begin("learning rates", config.steps)
            with strict_precision("fp32"):
                found = range_test(trainer, config.lowest, config.highest, config.steps, reporter.advance)
            reporter.end()
        finally:
            job.once.close()
        lr = job.lr
    if len(found.losses) < _FEWEST:
        raise UsageError(
            f"the loss grew out of hand after {len(found.losses)} steps: the rates are too high for a start; give a "
            f"lower --lowest"
        )
    folder.begin(plan)
    with replacing(folder.path / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["factor", "loss", "smooth"])
        columns = zip(found.factors, found.losses, found.smooth, strict=True)
        writer.writerows([f"{value:.8g}" for value in line] for line in columns)
    draw_range_test(found.factors, found.smooth, found.suggested, folder.path / PICTURE)
    rows = [["at the least loss", f"{found.least:.3g}", scaled(lr, found.least)]]
    rows.append(["a tenth of that", f"{found.least / 10:.3g}", scaled(lr, found.least / 10)])
    if found.suggested is None:
        reporter.note("note: the loss never falls clearly; more --steps, or a lower --lowest, may show more")
    else:
        rows.insert(0, ["steepest fall (suggested)", f"{found.suggested:.3g}", scaled(lr, found.suggested)])
    return folder.finish(plan, ["", "factor", "--lr"], rows)


_FEWEST = 10
