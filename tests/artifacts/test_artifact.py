"""One policy for outputs that are there already: docs/format.md has it as a table, and this file its rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import clusters, seal, write_features, write_photo

import featx
from featx.artifacts.artifact import refuse_other_plan
from featx.artifacts.features_file import resume
from featx.errors import PlanMismatch
from featx.runtime.progress import ALREADY_THERE, Reporter
from featx.store.schema import FilePlan
from featx.store.writer import FeatureWriter


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


PLAN = {"head": "1", "request": {"batch_size": 2}, "featx": featx.__version__, "torch": "0.0.1+cpu"}


def test_other_settings_are_refused_finished_or_not():
    other = {**PLAN, "request": {"batch_size": 4}}
    for finished in (True, False):
        with pytest.raises(
            PlanMismatch, match=r"x is a table made with different settings: --batch-size 2, now 4\. Choose"
        ):
            refuse_other_plan(Path("x"), "table", PLAN, other, finished=finished)


def test_other_versions_are_noted_on_what_is_finished_and_refused_on_what_is_not():
    notes = Notes()
    refuse_other_plan(Path("x"), "table", PLAN, PLAN, finished=True, reporter=notes)
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith("note: x was made with other versions (torch 0.0.1+cpu, now ")
    with pytest.raises(PlanMismatch, match=r"x was begun with other versions \(torch 0\.0\.1\+cpu, now .*unfinished"):
        refuse_other_plan(Path("x"), "table", PLAN, PLAN, finished=False)
    refuse_other_plan(Path("x"), "table", {**PLAN, "torch": own_torch()}, PLAN, finished=False, reporter=notes)
    assert len(notes.lines) == 1, "a build's suffix is no other version"


def own_torch() -> str:
    import torch

    return torch.__version__


@pytest.fixture
def photos(tmp_path):
    for index in range(9):
        write_photo(tmp_path / "photos" / "abc"[index % 3] / f"{index}.jpg", index)
    return tmp_path / "photos"


def edited(path: Path, old: str, new: str) -> None:
    """A features file whose provenance says something else of the same length, with fingerprint and checksum to match."""
    with h5py.File(path, "r+") as file:
        text = file["provenance"][()].decode()
        assert old in text
        assert len(old) == len(new)
        changed = text.replace(old, new)
        file["provenance"][()] = np.bytes_(changed)
        seal(file, json.loads(changed))


def test_every_command_takes_its_output_of_another_version_with_a_note(photos, tmp_path):
    """As after an upgrade: the version is taken out of what each output says of itself."""
    extract = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7")
    fit, probe = featx.FitConfig(c=1.0), featx.ProbeConfig(per_class=2, repeats=1, c=1.0, heads="svm")
    tune = featx.FinetuneConfig(backbone="alexnet-mini", lr="head", epochs=1, init_head="random")

    def run(notes: Notes) -> None:
        featx.extract_features(photos, tmp_path / "f.h5", extract, reporter=notes)
        featx.fit_svm(tmp_path / "f.h5", tmp_path / "h.safetensors", fit, reporter=notes)
        featx.probe_layers(tmp_path / "f.h5", tmp_path / "probe", probe, reporter=notes)
        featx.predict_images(tmp_path / "h.safetensors", photos, tmp_path / "p.csv", reporter=notes)
        featx.evaluate_head(tmp_path / "h.safetensors", tmp_path / "f.h5", output=tmp_path / "e.json", reporter=notes)
        featx.finetune_network(photos, tmp_path / "run", tune, reporter=notes)

    run(Notes())
    version = featx.__version__
    other = version[:-1] + chr(ord(version[-1]) + 1)
    for name in ("probe/probe.json", "p.csv.json", "e.json", "run/config.json"):
        path = tmp_path / name
        assert f'"featx": "{version}"' in path.read_text()
        path.write_text(path.read_text().replace(f'"featx": "{version}"', f'"featx": "{other}"'))
    head = featx.LinearHead.load(tmp_path / "h.safetensors")
    head.report["plan"]["featx"] = other
    head.save(tmp_path / "h.safetensors")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "photos" not in path.parts]
    before, notes = {path: path.read_bytes() for path in files}, Notes()
    with pytest.raises(PlanMismatch, match="head"):  # the head's bytes are others, and so is what it was asked for
        run(notes)
    featx.finetune_network(photos, tmp_path / "run", tune, reporter=notes)
    featx.probe_layers(tmp_path / "f.h5", tmp_path / "probe", probe, reporter=notes)
    assert {path: path.read_bytes() for path in before} == before
    noted = {line.split()[1].rpartition("/")[2] for line in notes.lines if "was made with other versions" in line}
    assert noted == {"h.safetensors", "probe", "run"}
    assert notes.lines.count(ALREADY_THERE) >= 3


def test_where_images_lie_and_the_number_of_workers_are_no_settings(photos, tmp_path):
    config = {"backbone": "alexnet-mini", "layers": "fc7"}
    featx.extract_features(photos, tmp_path / "f.h5", featx.ExtractConfig(**config, workers=1))
    before = (tmp_path / "f.h5").read_bytes()
    shutil.copytree(photos, tmp_path / "moved" / "photos", copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    report = featx.extract_features(
        tmp_path / "moved" / "photos", tmp_path / "f.h5", featx.ExtractConfig(**config, workers=3)
    )
    assert report.computed == 0
    assert (tmp_path / "f.h5").read_bytes() == before


def test_other_hardware_resumes_with_a_note(tmp_path):
    from featx.images.sources.scan import scan

    write_features(tmp_path / "whole.h5", *clusters(per_class=2), ("a", "b", "c"))
    whole = featx.open_features(tmp_path / "whole.h5")
    for index in range(6):
        write_photo(tmp_path / "photos" / f"{index:06d}.jpg", index)
    images = scan(tmp_path / "photos")
    plan = FilePlan(
        whole.raw_paths,
        whole.labels.tolist(),
        whole.classes,
        [-1] * 6,
        (),
        list(whole.layers.values()),
        whole.provenance,
    )
    notes = Notes()
    with FeatureWriter.open(tmp_path / "f.h5", plan) as writer:
        resume(writer, images, files="0" * 32, hardware="CPU AVX512", reporter=notes)
        assert notes.lines == [], "nothing was computed on the other one"
        writer.write_block(
            0, {"fc7": whole["fc7"][:2]}, status=np.ones(2, np.uint8), sha256=np.zeros((2, 32), np.uint8),
            orientation=np.ones(2, np.uint8), decoder=np.zeros(2, np.uint8), reasons={},
        )  # fmt: skip
    with FeatureWriter.open(tmp_path / "f.h5", plan) as writer:
        resume(writer, images, files="0" * 32, hardware="CPU AVX512", reporter=notes)
    assert ["begun on CPU; this is CPU AVX512: later rows round differently" in line for line in notes.lines] == [
        True
    ]


def test_an_option_that_came_later_has_its_default_in_older_outputs(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), ("a", "b", "c"))
    featx.probe_layers(path, tmp_path / "probe", featx.ProbeConfig(per_class=5, repeats=1, c=1.0))
    report = tmp_path / "probe" / "probe.json"
    stored = json.loads(report.read_text())
    del stored["plan"]["request"]["folds"]
    report.write_text(json.dumps(stored))
    featx.probe_layers(path, tmp_path / "probe", featx.ProbeConfig(per_class=5, repeats=1, c=1.0))
    with pytest.raises(PlanMismatch, match="--folds 5, now 3"):
        featx.probe_layers(path, tmp_path / "probe", featx.ProbeConfig(per_class=5, repeats=1, c=1.0, folds=3))
