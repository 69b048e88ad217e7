"""`featx probe` against scikit-learn on the same splits, and the picture it draws."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from conftest import clusters, write_features
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import LinearSVC

from featx.artifacts.journal import JOURNAL
from featx.commands import probe
from featx.commands.probe import probe_layers
from featx.errors import FileFormatError, LabelError, PlanMismatch, UnknownLayer, UsageError
from featx.figures.layer_accuracy import draw_layers
from featx.heads.splits import first_of_class, split_per_class
from featx.options.heads import ProbeConfig
from featx.store.open import named_layers


def test_accuracies_are_those_of_scikit_learn_on_the_same_splits(tmp_path):
    values, labels = clusters(per_class=30, spread=3.0, seed=1)
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"), failed=(4,))
    config = ProbeConfig(per_class=10, test_per_class=15, repeats=3, c=0.5, seed=7)
    report = probe_layers(path, tmp_path / "probe", config)
    rows = np.delete(np.arange(len(labels)), 4)
    models = {"svm": LinearSVC(C=0.5, tol=1e-6), "softmax": LogisticRegression(C=0.5, tol=1e-6)}
    assert [row.head for row in report.rows] == ["svm", "softmax"]
    for row in report.rows:
        expected = []
        for repeat in range(3):
            train, test = split_per_class(labels[rows].astype(np.int32), 10, 7 + repeat, list("abc"), most=15)
            assert np.bincount(labels[rows][test]).tolist() == [15, 15, 15]
            model = models[row.head].fit(normalize(values[rows[train]]), labels[rows[train]])
            predicted = model.predict(normalize(values[rows[test]]))
            expected.append(balanced_accuracy_score(labels[rows[test]], predicted))
        assert row.accuracies == pytest.approx(expected, abs=1e-9)
        assert row.accuracy == pytest.approx(np.mean(expected))
        assert row.deviation == pytest.approx(np.std(expected))
        assert row.unproven == 0
    assert len({value for row in report.rows for value in row.accuracies}) > 1


def test_table_and_picture_are_written_and_the_same_again(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=12), ("a", "b", "c"))
    config = ProbeConfig(per_class=6, repeats=2, folds=2)
    found = []
    for folder in ("one", "two"):
        report = probe_layers(path, tmp_path / folder, config)
        found.append({file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()})
    assert found[0] == found[1]
    assert set(found[0]) == {"probe.json", "probe.csv", "probe.png"}
    with (tmp_path / "one" / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["head"]) for row in rows] == [("fc7", "svm"), ("fc7", "softmax")]
    assert float(rows[0]["accuracy"]) == pytest.approx(report.rows[0].accuracy, abs=1e-6)
    assert "fc7" in str(report)
    with Image.open(tmp_path / "one" / "probe.png") as picture:
        assert picture.size[0] > 500


def test_a_probe_that_was_stopped_goes_on_and_ends_with_the_same_table(tmp_path, monkeypatch):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=12, spread=3.0), ("a", "b", "c"))
    config = ProbeConfig(per_class=6, repeats=3, c=1.0)
    probe_layers(path, tmp_path / "whole", config)
    real, calls = probe._one, []

    def dies(*arguments):
        calls.append(arguments[0])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(probe, "_one", dies)
    with pytest.raises(KeyboardInterrupt):
        probe_layers(path, tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "probe.json").exists()
    journal = tmp_path / "killed" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-9])  # the fourth line was being written
    with pytest.raises(PlanMismatch, match=r"is a probe made with different settings: --repeats 3, now 2"):
        probe_layers(path, tmp_path / "killed", ProbeConfig(per_class=6, repeats=2, c=1.0))
    probe_layers(path, tmp_path / "killed", config)
    assert len(calls) == 5 + 3, "three fits were kept, the other three were done"
    names = ["probe.csv", "probe.json", "probe.png"]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    report = probe_layers(path, tmp_path / "killed", config)
    assert len(calls) == 8, "all was there"
    assert dataclasses.replace(report, output=None, seconds=0) == dataclasses.replace(
        probe_layers(path, None, config), seconds=0
    )
    (tmp_path / "killed" / "probe.png").unlink()
    probe_layers(path, tmp_path / "killed", config)
    assert (tmp_path / "killed" / "probe.png").read_bytes() == (tmp_path / "whole" / "probe.png").read_bytes()
    with pytest.raises(PlanMismatch, match="is a probe made with different settings"):
        probe_layers(path, tmp_path / "killed", ProbeConfig(per_class=5, repeats=3, c=1.0))


def test_a_damaged_journal_is_named(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=12), ("a", "b", "c"))
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / JOURNAL).write_bytes(b"\0\0\n")
    with pytest.raises(FileFormatError, match=r"probe\.partial\.jsonl is damaged; delete it"):
        probe_layers(path, tmp_path / "probe", ProbeConfig(per_class=6, repeats=1, c=1.0))


def test_the_picture_shows_the_accuracies_of_the_table(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=12), ("a", "b", "c"))
    probe_layers(path, tmp_path, ProbeConfig(per_class=6, repeats=2, c=1.0))
    before = (tmp_path / "probe.png").read_bytes()
    kept = json.loads((tmp_path / "probe.json").read_text())
    kept["rows"][0]["accuracy"] -= 0.2
    (tmp_path / "probe.json").write_text(json.dumps(kept))
    draw_layers(kept, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes() != before


def test_layers_of_a_file_are_chosen_by_name_range_and_glob(tmp_path):
    class Held(dict):
        path = tmp_path

    held = Held.fromkeys(["conv1", "conv2", "conv3", "fc6", "fc7"])
    assert named_layers(held, "all") == list(held)
    assert named_layers(held, "fc7,conv1-conv2") == ["conv1", "conv2", "fc7"]
    assert named_layers(held, "conv*") == ["conv1", "conv2", "conv3"]
    with pytest.raises(UnknownLayer, match="holds no layer 'fc8'; it holds conv1, conv2"):
        named_layers(held, "fc7,fc8")


def test_too_few_images_are_said(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=5), ("a", "b", "c"))
    with pytest.raises(LabelError, match="class 'a' has 5 usable images; --per-class 6"):
        probe_layers(path, None, ProbeConfig(per_class=6))
    with pytest.raises(LabelError, match="no images are left to test on; --per-class 5 is too many"):
        probe_layers(path, None, ProbeConfig(per_class=5, c=1.0))


def test_options_for_images_are_refused_with_features(tmp_path):
    values, labels = clusters(per_class=12)
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))
    for options in ({"backbone": "vgg16"}, {"weights": "random:1"}, {"pool": "avg"}):
        with pytest.raises(UsageError, match=f"--{next(iter(options))} is for images; .* holds features"):
            probe_layers(path, config=ProbeConfig(per_class=5, **options))


def test_damaged_rows_are_refused_to_train_on_and_to_test_on(tmp_path):
    values, labels = clusters(per_class=12)
    train, test = split_per_class(labels.astype(np.int32), 5, 0, ["a", "b", "c"], most=50)
    told = {train[3]: f"fc7 of {train[3]:06d}.jpg .row {train[3]}. holds NaN", test[3]: "given to the head holds NaN"}
    for row, words in told.items():
        damaged = values.copy()
        damaged[row, 3] = np.nan
        path = write_features(tmp_path / f"{row}.h5", damaged, labels, ("a", "b", "c"))
        with pytest.raises(FileFormatError, match=words):
            probe_layers(path, config=ProbeConfig(per_class=5, repeats=1, c=1.0, heads="svm"))


# --- baselines, learning curves, several probes in one picture


@pytest.mark.parametrize(("classes", "kind"), [(3, "l2"), (2, "standard"), (3, "none")])
def test_baselines_are_scikit_learns(tmp_path, classes, kind):
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    values, labels = clusters(per_class=30, classes=classes, spread=3.5, seed=1)
    names = list("abc")[:classes]
    path = write_features(tmp_path / "f.h5", values, labels, tuple(names))
    config = ProbeConfig(heads="mean,knn,ridge", per_class=10, test_per_class=15, repeats=2, seed=7, normalize=kind)
    report = probe_layers(path, tmp_path / "probe", config)
    assert [row.head for row in report.rows] == ["mean", "knn", "ridge"]
    for repeat in range(2):
        train, test = split_per_class(labels.astype(np.int32), 10, 7 + repeat, names, most=15)
        known, asked = values[train].astype(float), values[test].astype(float)
        if kind == "l2":
            known, asked = normalize(known), normalize(asked)
        elif kind == "standard":
            scale = StandardScaler().fit(known)
            known, asked = scale.transform(known), scale.transform(asked)
        nearest = KNeighborsClassifier(5).fit(known, labels[train])
        neighbours = labels[train][nearest.kneighbors(asked, return_distance=False)]
        counts = np.array([np.bincount(row, minlength=classes) for row in neighbours])
        voted = [row[np.argmax(count[row] == count.max())] for row, count in zip(neighbours, counts, strict=True)]
        spread = np.square(known - known.mean(0)).sum(1).mean()
        ridge = RidgeClassifierCV(spread * np.logspace(-4, 4, 9)).fit(known, labels[train])
        assert [row.c[repeat] for row in report.rows] == pytest.approx([1.0, 5.0, 1 / ridge.alpha_])
        expected = {
            "mean": NearestCentroid().fit(known, labels[train]).predict(asked),
            "knn": np.array(voted),
            "ridge": ridge.predict(asked),
        }
        for row in report.rows:
            right = balanced_accuracy_score(labels[test], expected[row.head])
            assert row.accuracies[repeat] == pytest.approx(right, abs=1e-9), row.head
    assert len({row.accuracy for row in report.rows}) > 1
    assert "nearest class mean" in str(report)


def test_learning_curves_train_on_parts_of_the_same_images(tmp_path, monkeypatch):
    values, labels = clusters(per_class=30, spread=3.0, seed=1)
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))
    config = ProbeConfig(heads="svm,mean", per_class=12, test_per_class=15, repeats=3, c=0.5, curve="6,2")
    real, seen, outcomes = probe._one, [], {}

    def watched(head, features, layer, values, labels, train, test, classes, config):
        outcome = real(head, features, layer, values, labels, train, test, classes, config)
        seen.append((head, tuple(train), tuple(test)))
        outcomes.setdefault((head, len(train) // 3), []).append(outcome[0])
        return outcome

    monkeypatch.setattr(probe, "_one", watched)
    report = probe_layers(path, tmp_path / "probe", config)
    assert [(one.head, one.per_class) for one in report.curve] == [("svm", 2), ("svm", 6), ("mean", 2), ("mean", 6)]
    svm = [(set(train), test) for head, train, test in seen if head == "svm"]
    assert [len(train) for train, _ in svm] == [36] * 3 + [6] * 3 + [18] * 3
    for repeat in range(3):
        (whole, test), (two, two_test), (six, six_test) = svm[repeat::3]
        assert two < six < whole
        assert test == two_test == six_test
        assert np.bincount(labels[list(two)]).tolist() == [2, 2, 2]
        assert two == set(first_of_class(np.array(sorted(whole)), labels.astype(np.int32), 2, repeat).tolist())
    for one in report.curve:
        assert one.accuracy == pytest.approx(np.mean(outcomes[one.head, one.per_class]))
        assert one.deviation == pytest.approx(np.std(outcomes[one.head, one.per_class]))
    plain = probe_layers(path, None, dataclasses.replace(config, curve=None))
    assert [row.accuracies for row in plain.rows] == [row.accuracies for row in report.rows]
    names = {file.name for file in (tmp_path / "probe").iterdir()}
    assert names == {"probe.json", "probe.csv", "probe.png", "curve.csv", "curve.png"}
    with (tmp_path / "probe" / "curve.csv").open() as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == pytest.approx(
            [one.accuracy for one in report.curve], abs=1e-6
        )
    count = len(seen)
    assert probe_layers(path, tmp_path / "probe", config).curve == report.curve
    assert len(seen) == count, "all was there"
    with pytest.raises(UsageError, match="its numbers must be below --per-class 12"):
        dataclasses.replace(config, curve="5,12")


def test_fewer_images_than_folds_take_the_c_of_all(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=14, spread=3.0), ("a", "b", "c"))
    config = ProbeConfig(heads="svm", per_class=8, repeats=2, curve="1,6")
    report = probe_layers(path, tmp_path / "probe", config)
    assert [one.per_class for one in report.curve] == [1, 6]
    fixed = [
        probe_layers(path, None, dataclasses.replace(config, c=c, curve="1")).curve[0] for c in set(report.rows[0].c)
    ]
    low, high = min(one.accuracy for one in fixed), max(one.accuracy for one in fixed)
    assert low - 1e-9 <= report.curve[0].accuracy <= high + 1e-9


def test_a_killed_learning_curve_goes_on(tmp_path, monkeypatch):
    path = write_features(tmp_path / "f.h5", *clusters(per_class=12, spread=3.0), ("a", "b", "c"))
    config = ProbeConfig(heads="svm", per_class=6, repeats=2, c=1.0, curve="3")
    whole = probe_layers(path, tmp_path / "whole", config)
    real, calls = probe._one, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(probe, "_one", dies)
    with pytest.raises(KeyboardInterrupt):
        probe_layers(path, tmp_path / "killed", config)
    assert probe_layers(path, tmp_path / "killed", config).curve == whole.curve
    assert len(calls) == 5, "three of four fits were kept"


def test_several_probes_come_into_one_picture_with_published_numbers(tmp_path, monkeypatch):
    from featx.commands.compare.plot import plot_probes
    from featx.options.analysis import PlotConfig

    for name, seed in (("one", 1), ("other", 2)):
        path = write_features(tmp_path / f"{name}.h5", *clusters(per_class=12, seed=seed), ("a", "b", "c"))
        probe_layers(path, tmp_path / name, ProbeConfig(per_class=6, repeats=2, c=1.0))
    folders = [tmp_path / "one", tmp_path / "other"]
    report = plot_probes(folders, tmp_path / "p.svg", PlotConfig(heads="svm", reference="zeiler2014"))
    text = (tmp_path / "p.svg").read_text()
    assert report.lines_drawn == [
        "one, linear SVM",
        "other, linear SVM",
        "Zeiler & Fergus 2014, Caltech-101, linear SVM",
    ]
    for name in ("one, linear SVM", "Zeiler &amp; Fergus 2014", "conv5", "fc7"):
        assert name in text
    assert plot_probes(folders, tmp_path / "p.svg", PlotConfig(heads="svm", reference="zeiler2014")) == report
    with pytest.raises(UsageError, match="is there and is another file"):
        plot_probes(folders, tmp_path / "p.svg", PlotConfig(heads="softmax"))
    plot_probes(folders, tmp_path / "p.pdf")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    drawn = []
    monkeypatch.setattr(
        "featx.commands.compare.plot.draw_lines",
        lambda lines, chance, path, title: (drawn.append((lines, chance)), path.write_bytes(b"picture")),
    )
    for reference, conv5 in (("zeiler2014", (0.862, 0.008)), ("zeiler2014-256", (0.656, 0.003))):
        plot_probes(folders, tmp_path / f"{reference}.png", PlotConfig(reference=reference))
        lines, chance = drawn.pop()
        assert chance == pytest.approx(1 / 3)
        for folder, head, line in zip(
            [folders[0]] * 2 + [folders[1]] * 2, ["svm", "softmax"] * 2, lines, strict=False
        ):
            rows = json.loads((folder / "probe.json").read_text())["rows"]
            assert line.values == {r["layer"]: (r["accuracy"], r["deviation"]) for r in rows if r["head"] == head}
        assert lines[4].values["conv5"] == pytest.approx(conv5)
        assert lines[4].published
    path = write_features(tmp_path / "four.h5", *clusters(per_class=12, classes=4), ("a", "b", "c", "d"))
    probe_layers(path, tmp_path / "four", ProbeConfig(per_class=6, repeats=1, c=1.0))
    plot_probes([*folders, tmp_path / "four"], tmp_path / "mixed.png")
    assert drawn.pop()[1] is None
    with pytest.raises(FileFormatError, match="holds no finished probe"):
        plot_probes([tmp_path], tmp_path / "q.png")
    with pytest.raises(UsageError, match="none of these probes has --heads ridge"):
        plot_probes(folders, tmp_path / "q.png", PlotConfig(heads="ridge"))
    with pytest.raises(UsageError, match="a picture is drawn"):
        plot_probes(folders, tmp_path / "q.txt")
