"""--group-by: what belongs together never stands on two sides of a split or fold."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import write_photo
from sklearn.model_selection import StratifiedGroupKFold

import featx
from featx.artifacts.head_rows import kept_together, split_rows
from featx.errors import UsageError
from featx.heads.selection.folds import folds_of
from featx.heads.splits import united
from featx.images.sources.scan import scan
from featx.training.task import plan_task

BY = r"(patient-\d+)"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """12 patients of two classes with one to five photos each; one photo of a patient is a copy of another's."""
    folder = tmp_path_factory.mktemp("patients")
    for patient in range(12):
        for number in range(1 + patient % 5):
            path = folder / "ab"[patient % 2] / f"patient-{patient:02d}-{number}.jpg"
            write_photo(path, 10 * patient + number)
    (folder / "a" / "patient-04-0.jpg").write_bytes((folder / "a" / "patient-02-1.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def features(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(photos, path, featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu"))
    return featx.open_features(path)


def patients_of(paths):
    return np.array([re.search(BY, path)[1] for path in paths])


def test_what_either_says_belongs_together_does(features):
    rows = np.arange(len(features))
    found = kept_together(features, rows, BY)
    patients = patients_of(features.paths)
    patients[patients == "patient-04"] = "patient-02"  # by the copy
    expected = [int(np.flatnonzero(patients == name)[0]) for name in patients]
    assert found.tolist() == expected
    assert united(np.array([0, 0, 2, 3, 3]), np.array([0, 1, 1, 3, 4])).tolist() == [0, 0, 0, 3, 3]
    assert united(np.arange(4), np.array([0, 0, 2, 2])).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_no_patient_stands_on_two_sides(features, seed):
    rows = np.arange(len(features))
    config = featx.FitConfig(test=0.3, seed=seed, group_by=BY)
    together = kept_together(features, rows, BY)
    train, test = split_rows(features, rows, together, config, multilabel=False)
    patients = patients_of(features.paths)
    assert not set(patients[train]) & set(patients[test])
    assert len(train) + len(test) == len(rows)
    assert set(features.labels[test]) == {0, 1}
    alone = split_rows(features, rows, kept_together(features, rows), config, multilabel=False)
    assert set(patients[alone[0]]) & set(patients[alone[1]])  # without it they do


def test_folds_keep_groups_as_scikit_learns_do(features):
    labels, patients = features.labels, patients_of(features.paths)
    rows = np.arange(len(features))
    held_out = folds_of(labels, 3, 0, features.classes, kept_together(features, rows, BY))
    assert (held_out.sum(0) == 1).all()
    for fold in held_out:
        assert not set(patients[fold]) & set(patients[~fold])
    reference = [test for _, test in StratifiedGroupKFold(3).split(rows, labels, patients)]
    spread = [np.ptp([held.sum() for held in held_out]), np.ptp([len(test) for test in reference])]
    assert spread[0] <= spread[1] + 4  # as even as groups of up to five allow


def test_heads_and_trainings_take_it(features, photos, tmp_path, featx_command):
    report = featx.fit_svm(features.path, tmp_path / "h.safetensors", featx.FitConfig(c=1.0, test=0.3, group_by=BY))
    assert report.train + report.test == len(features)
    assert featx.verify_file(tmp_path / "h.safetensors", featx.VerifyConfig(source=str(features.path))).passed
    manifest = scan(photos)
    from featx.images.contents import copies_in, groups_among

    copies = united(copies_in(manifest), groups_among(manifest.paths, BY))
    task = plan_task(manifest, val=0.3, split_column=False, seed=0, copies=copies)
    patients = patients_of([path.decode() for path in manifest.paths])
    assert not set(patients[task.train]) & set(patients[task.val])
    done = featx_command("finetune", photos, "-b", "alexnet-mini", "--epochs", "1", "--lr", "head", "--val", "0.3",
                         "--group-by", BY, "--device", "cpu", "-o", tmp_path / "run", "--json")  # fmt: skip
    assert done.status == 0, done.err
    assert done.json["metrics"]["images"] == len(task.val)
    for words, said in (
        (["fit-svm", features.path, "--group-by", "x(", "--c", "1"], "is no regular expression"),
        (["fit-svm", features.path, "--group-by", "patient-0", "--c", "1"], "finds nothing in a/patient-10"),
        (["fit-svm", features.path, "--group-by", BY, "--per-class", "2"], "--group-by is for a share"),
    ):
        refused = featx_command(*words)
        assert (refused.status, said in refused.err) == (2, True), refused.err


@pytest.fixture
def featx_command(request):
    return request.getfixturevalue("featx")


def test_config_refuses_two_ways_to_split():
    with pytest.raises(UsageError, match="--group-by is for a share"):
        featx.FinetuneConfig(split_column=True, group_by=BY)
