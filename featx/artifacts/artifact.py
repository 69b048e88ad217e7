"""An output on disk, and what a command does when its output is there already.

Every command follows the same policy; docs/format.md has it as a table.

- Nothing is there: compute.
- Something else is there: refuse, and leave it alone.
- It was made with other settings, from other inputs or other images: refuse, and name what differs.
- It is finished: take it. If other versions of featx or its libraries made it, say so.
- It is not finished: resume; but not with other versions, which would mix two roundings in one output.

Where images lie, the hardware, and the number of workers and processes are not settings: an output is the same
output wherever and however it was computed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from featx.artifacts.same_images import refuse_other_files
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.images.manifest import Manifest
from featx.options.option import Config
from featx.runtime.files import replacing
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.store.schema import differences

SHOWN_DIFFERENCES = 3

# A name that ends so promises a format; another file under it would be opened by the wrong program.
_KNOWN_ENDINGS = frozenset({
    ".h5", ".hdf5", ".mat", ".npz", ".npy", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".feather", ".arrow",
    ".pkl", ".pickle", ".pt", ".pth", ".safetensors", ".zip", ".tar", ".gz", ".xlsx", ".txt", ".png", ".jpg", ".jpeg",
    ".zarr",
})  # fmt: skip
_EXPORTED = (".npz", ".npy", ".mat", ".csv", ".tsv", ".parquet")  # what featx export makes of a features file
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored(Generic[Result]):
    """What an output says of itself.

    Attributes:
        plan: what it was made from: settings, digests of its inputs, versions.
        result: what the command answers if it is finished; None if it is not.
        images: the record of the images it was made from (`same_images.record_of`); None if it keeps none.
    """

    plan: Mapping[str, Any]
    result: Result | None
    images: object = None


class Artifact(ABC, Generic[Result]):
    """The output of one command.

    Attributes:
        noun: what it is, for messages: "head".
        endings: what its name may end with, among the endings that say what a file is; any where there are none.
        hint: what to type to get there after all, for the message about another ending.
        config: the options it is made with: an option that came later than the output has its default there.
    """

    noun: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ()
    hint: ClassVar[str] = ""
    config: ClassVar[type[Config] | None] = None

    def __init__(self, path: Path, reporter: Reporter = SILENT) -> None:
        """Args:

        path: the output.

        Raises:
            UsageError: its name says that it is of another kind.
        """
        self.path, self.reporter = path, reporter
        ending = path.suffix.lower()
        if self.endings and ending in _KNOWN_ENDINGS and ending not in self.endings:
            hint = self.hint.format(name=path.name, stem=path.stem) if ending in _EXPORTED else ""
            raise UsageError(
                f"-o {path.name}: a {self.noun} is written, and {ending} says something else; call it "
                f"{path.stem}{self.endings[0]}{hint}"
            )

    @abstractmethod
    def read(self) -> Stored[Result] | None:
        """What is there; None if nothing is.

        Raises:
            UsageError and its children: something else is there.
        """

    def take_finished(
        self, plan: Mapping[str, Any], images: Manifest | Callable[[], Manifest] | None = None
    ) -> Result | None:
        """The result of a finished output of this plan; None if there is something to compute.

        Args:
            images: the images given now, or what finds them, where the output was made from images.

        Raises:
            UsageError and its children: something else is there.
            PlanMismatch: it was made from another plan, or from other images of the same names.
        """
        stored = self.read()
        if stored is None:
            return None
        self.refuse_other_plan(stored.plan, plan, finished=stored.result is not None)
        if stored.result is not None:
            self.refuse_changed_files()
        if images is not None and stored.images is not None:
            now = images if isinstance(images, Manifest) else images()
            refuse_other_files(str(self.path), stored.images, now, reporter=self.reporter)
        if stored.result is not None:
            self.reporter.note(ALREADY_THERE)
        return stored.result

    def refuse_changed_files(self) -> None:
        """Raise PlanMismatch if a file that a finished output's plan names by its path is another one now."""

    def refuse_other_plan(self, stored: Mapping[str, Any], asked: Mapping[str, Any], *, finished: bool) -> None:
        """Raise PlanMismatch unless an output of the plan `stored` may stand for one of the plan `asked`."""
        if not isinstance(stored.get("request", {}), dict):
            raise FileFormatError(f"{self.path}: its plan is damaged; delete it, or choose another output with -o")
        if self.config is not None and "request" in asked:
            defaults = self.config().recorded()
            added = {name: defaults[name] for name in asked["request"] if name in defaults}
            stored = {**stored, "request": {**added, **stored.get("request", {})}}
        refuse_other_plan(self.path, self.noun, stored, asked, finished=finished, reporter=self.reporter)


def refuse_foreign_files(folder: Path, names: Sequence[str], command: str) -> None:
    """Raise UsageError if files that a command would write are there and are not its own."""
    there = [name for name in names if os.path.lexists(folder / name)]
    if there:
        raise UsageError(
            f"{folder} holds {there[0]}, which {command} would overwrite, and it is not from {command}; choose "
            f"another folder with -o, or move the file"
        )


def refuse_other_plan(
    path: Path,
    noun: str,
    stored: Mapping[str, Any],
    asked: Mapping[str, Any],
    *,
    finished: bool,
    reporter: Reporter = SILENT,
) -> None:
    """Raise PlanMismatch if settings differ, or if an unfinished output was begun with other versions.

    A finished output of other versions is accepted with a note.
    """
    changed = differences(without_versions(stored), without_versions(asked))
    if changed:
        named = "; ".join(str(one) for one in changed[:SHOWN_DIFFERENCES])
        raise PlanMismatch(
            f"{path} is a {noun} made with different settings: {named}. Choose another output with -o, or delete it"
        )
    refuse_other_versions(path, versions_in(stored), finished=finished, reporter=reporter)


def refuse_other_versions(
    path: Path, stored: Mapping[str, str], *, finished: bool, reporter: Reporter = SILENT
) -> None:
    """The part of the policy that is about versions: a note on a finished output, a refusal of an unfinished one."""
    now = installed_versions()
    changed = [f"{name} {stored[name]}, now {now[name]}" for name in stored if not _same(stored[name], now.get(name))]
    if not changed:
        return
    if not finished:
        raise PlanMismatch(
            f"{path} was begun with other versions ({'; '.join(changed)}), unfinished. Finish it with those, "
            f"choose another output with -o, or delete it"
        )
    reporter.note(f"note: {path} was made with other versions ({'; '.join(changed)}); delete it to compute it again")


_PACKAGES = {
    "featx": "featx", "torch": "torch", "torchvision": "torchvision", "decoder": "pillow", "torchcodec": "torchcodec",
}  # fmt: skip


def versions_in(plan: Mapping[str, Any]) -> dict[str, str]:
    """The versions that a plan names."""
    return {name: str(plan[name]) for name in _PACKAGES if name in plan}


def without_versions(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of a plan."""
    return {key: value for key, value in plan.items() if key not in _PACKAGES}


@functools.cache
def installed_versions() -> dict[str, str]:
    """Versions of featx and of what its results depend on, without loading them."""
    from featx import __version__

    found = {name: importlib.metadata.version(package) for name, package in _PACKAGES.items() if name != "featx"}
    return {**found, "featx": __version__, "decoder": f"Pillow {found['decoder']}"}


def _same(stored: str, now: str | None) -> bool:
    """Whether two versions agree; torch calls itself 2.14.1+cu130, its package is 2.14.1."""
    return now is None or stored.partition("+")[0] == now.partition("+")[0]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON; the file has its name when it is whole."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def plan_of(config: Config, *, without: Sequence[str] = (), **inputs: Any) -> dict[str, Any]:
    """The plan of an output: its inputs, the options that can change it, and the version that makes it.

    Args:
        without: recorded options that say where something is or what computes, not what comes out.
        inputs: digests of what it is made from, and what is not an option.
    """
    request = {name: value for name, value in config.recorded().items() if name not in without}
    return {**inputs, "request": request, "featx": installed_versions()["featx"]}
