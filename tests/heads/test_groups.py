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


@pytest.fixture(scope="module")
def listed(photos, tmp_path_factory):
    """The photos as a CSV whose column says the patient; two photos have none."""
    path = tmp_path_factory.mktemp("listed") / "list.csv"
    lines = ["path,label,group"]
    for photo in sorted(photos.rglob("*.jpg")):
        name = "" if photo.name.startswith("patient-00") else re.search(BY, photo.name)[1]
        lines.append(f"{photo},{photo.parent.name},{name}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_column_of_groups_is_kept_and_respected(listed, features, tmp_path):
    config = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu")
    featx.extract_features(listed, tmp_path / "f.h5", config)
    found = featx.open_features(tmp_path / "f.h5")
    patients = patients_of(found.paths)
    assert found.groups == ["" if name == "patient-00" else name for name in patients]
    assert featx.verify_file(tmp_path / "f.h5").passed
    rows = np.arange(len(found))
    assert kept_together(found, rows).tolist() == kept_together(features, np.arange(len(features)), BY).tolist()
    featx.fit_svm(tmp_path / "f.h5", tmp_path / "h.safetensors", featx.FitConfig(c=1.0, test=0.3))
    assert featx.verify_file(tmp_path / "h.safetensors", featx.VerifyConfig(source=str(tmp_path / "f.h5"))).passed
    # Shards, joined files, lists that are made of it: the column comes along.
    for shard in ("0/2", "1/2"):
        part = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", shard=shard, batch_size=8)
        featx.extract_features(listed, tmp_path / "p.h5", part)
    featx.merge_shards(sorted(tmp_path.glob("p.*.h5")), tmp_path / "merged.h5")
    assert featx.open_features(tmp_path / "merged.h5").groups == found.groups
    featx.concat_features([tmp_path / "f.h5", tmp_path / "f.h5"], tmp_path / "both.h5")
    assert featx.open_features(tmp_path / "both.h5").groups == found.groups * 2
    assert featx.open_features(tmp_path / "f.h5", features.path).groups == found.groups + [""] * len(features)
    (tmp_path / "ticked.csv").write_text(f"remove,row,path\nx,0,{found.paths[0]}\n")
    featx.clean_list(tmp_path / "f.h5", tmp_path / "ticked.csv", tmp_path / "clean.csv")
    assert list(scan(tmp_path / "clean.csv").groups) == found.groups[1:]


def test_a_changed_group_is_found(listed, tmp_path):
    import h5py

    from featx.errors import VerificationFailed

    featx.extract_features(
        listed, tmp_path / "f.h5", featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu")
    )
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/group"][5] = b"patient-99"
    with pytest.raises(VerificationFailed, match="they do not match their checksum"):
        featx.verify_file(tmp_path / "f.h5")


def test_a_training_respects_the_column(listed, photos):
    from featx.training.task import undivided

    manifest, folder = scan(listed), scan(photos)
    assert undivided(manifest, None).tolist() == undivided(folder, BY).tolist()
    task = plan_task(manifest, val=0.3, split_column=False, seed=0, copies=undivided(manifest, None))
    patients = patients_of([path.decode() for path in manifest.paths])
    assert not set(patients[task.train]) & set(patients[task.val])
    assert manifest.digest != scan(photos).digest
    # A pattern joins what the column leaves alone, and the other way round.
    both = undivided(manifest, r"(patient-00|patient-\d+-\d+)")
    assert len(np.unique(both[patients == "patient-00"])) == 1


def test_groups_of_several_classes_are_divided_between_the_sides(tmp_path):
    """Photographers with images of every class: nothing is lost, and none stands on two sides."""
    from featx.heads.splits import split_by_share, split_per_class

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 120).astype(np.int32)
    photographers = generator.integers(0, 12, 120)
    groups = np.array([int(np.flatnonzero(photographers == one)[0]) for one in photographers])
    train, test = split_per_class(labels, 10, 1, list("abc"), 8, groups=groups)
    assert np.bincount(labels[train]).tolist() == [10, 10, 10]
    assert np.bincount(labels[test]).min() > 1
    assert np.bincount(labels[test]).max() <= 8
    assert not set(photographers[train]) & set(photographers[test])
    train, test = split_by_share(labels, 0.3, 1, groups)
    assert len(train) + len(test) == 120
    assert 0.2 < len(test) / 120 < 0.4
    assert not set(photographers[train]) & set(photographers[test])
    # One pair in two classes leaves the classes their shares.
    pairs = np.arange(120)
    pairs[7] = pairs[3] if labels[7] != labels[3] else pairs[int(np.flatnonzero(labels != labels[7])[0])]
    pairs = np.minimum(pairs, pairs[pairs])
    _, test = split_by_share(labels, 0.25, 1, pairs)
    assert np.abs(np.bincount(labels[test]) - 0.25 * np.bincount(labels)).max() <= 1
    # A class that only one group has stays in training.
    labels[:] = 0
    labels[photographers == 4] = 1
    for seed in range(6):
        train, _ = split_by_share(labels, 0.5, seed, groups)
        assert set(labels[train]) == {0, 1}
    with pytest.raises(featx.FeatxError, match="class 'b' has"):
        split_per_class(labels, 50, 0, ["a", "b"], groups=groups)


def test_copies_take_part_once_and_groups_as_a_whole(tmp_path):
    from featx.heads.splits import split_per_class

    labels = np.repeat([0, 1], 20).astype(np.int32)
    copies = np.arange(40)
    copies[1] = 0
    groups = np.arange(40) // 4 * 4
    train, test = split_per_class(labels, 6, 0, ["a", "b"], copies=copies, groups=groups)
    assert 1 not in train
    assert 1 not in test
    assert not set(groups[train]) & set(groups[test])
    assert np.bincount(labels[train]).tolist() == [6, 6]


def test_a_probe_of_photographers_trains_and_tests_every_class(photos, tmp_path):
    lines = ["path,label,group"]
    files = sorted(photos.rglob("*.jpg"))
    lines += [f"{file},{file.parent.name},{number % 5}" for number, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu")
    featx.extract_features(tmp_path / "list.csv", tmp_path / "f.h5", config)
    report = featx.probe_layers(
        tmp_path / "f.h5", None, featx.ProbeConfig(heads="mean", per_class=3, repeats=2, c=1.0)
    )
    assert report.classes == 2
    assert report.test >= 4
