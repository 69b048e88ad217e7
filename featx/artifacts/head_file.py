"""The head as an output: how it was fitted and how good it is are stored in the file itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featx.artifacts.artifact import Artifact, Stored
from featx.heads.excluded import excluded_text
from featx.heads.linear_head import LinearHead
from featx.heads.quality.metrics import GridPoint, LabelMetrics, Metrics, metric_lines, read_metrics
from featx.heads.selection.scoring import SCORES
from featx.options.heads import HEADS, FitConfig
from featx.runtime.report import Report
from featx.runtime.stored import build
from featx.runtime.text import format_duration, plural, table

SHOWN_CONFUSIONS = 5


@dataclass(frozen=True)
class FitReport(Report):
    """How a head was fitted and how good it is.

    Attributes:
        left_out: images that neither train nor test.
        excluded: these by reason.
        curve: cross-validated score for every C that was tried; empty if C was given.
        score: what that is, see `heads.selection.scoring`.
        metrics: on the test rows; None if there are none.
        gap: proven bound on how far the objective is above its optimum, relative to it; the worst class.
        uncertified: what could not be proven to the solver's tolerance: class, C and fold, with its gap.
    """

    output: Path | None
    kind: str
    layer: str
    values: int
    normalize: str
    c: float
    curve: list[GridPoint]
    train: int
    test: int
    left_out: int
    metrics: Metrics | LabelMetrics | None
    gap: float
    uncertified: list[str]
    notes: list[str]
    seconds: float
    excluded: dict[str, int] = field(default_factory=dict)
    score: str = "accuracy"

    def lines(self) -> list[str]:
        text = [
            f"{HEADS[self.kind]} on {self.layer} ({plural(self.values, 'value')}, {self.normalize}): "
            f"{plural(self.train, 'training image')}, {plural(self.test, 'test image')}"
            + excluded_text(self.excluded)
            + f"; {format_duration(self.seconds)}"
        ]
        if self.curve:
            text += self._curve_lines()
        text.append(f"C = {self.c:g}; objective proven to be within {self.gap:.0e} of its optimum")
        if self.uncertified:
            shown = "; ".join(self.uncertified[:SHOWN_CONFUSIONS])
            text.append(
                f"NOT proven to be at their optimum: {plural(len(self.uncertified), 'fit')}, among them {shown}"
            )
        if self.metrics:
            text += metric_lines(self.metrics)
        text += [f"note: {note}" for note in self.notes]
        text.append(f"saved as {self.output}" if self.output else "not saved: -o HEAD.safetensors keeps it")
        return text

    def _curve_lines(self) -> list[str]:
        measured = SCORES["ap" if isinstance(self.metrics, LabelMetrics) else self.score]
        rows = [
            [f"{p.c:g}", f"{p.accuracy:.1%}", f"± {p.deviation:.1%}", "chosen" if p.c == self.c else ""]
            for p in self.curve
        ]
        lines = table(["C", measured, "(folds)", ""], rows)
        if self.c in (self.curve[0].c, self.curve[-1].c) and self.metrics:
            lines.append("the best C is at the edge of what was tried; values beyond it may do better: --c")
        return lines


def plan_in(report: dict[str, Any]) -> dict[str, Any]:
    """What a head was fitted from, of its report; empty if the report does not say."""
    found = report.get("plan")
    return found if isinstance(found, dict) else {}


class HeadFile(Artifact[FitReport]):
    """HEAD.safetensors."""

    noun = "head"
    endings = (".safetensors",)
    config = FitConfig

    def read(self) -> Stored[FitReport] | None:
        if not self.path.exists():
            return None
        head = LinearHead.load(self.path)
        where = f"{self.path}, its report"
        stored = dict(head.report)
        plan = plan_in(stored)
        metrics = read_metrics(stored.get("metrics"), f"{where}, metrics")
        return Stored(plan, build(FitReport, stored, where, output=self.path, metrics=metrics, seconds=0.0))
