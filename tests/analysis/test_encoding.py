"""featx encode against scikit-learn's RidgeCV in every fold, and noise ceilings against simulated ones."""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest
import torch
from conftest import write_features
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

import featx
from featx.analysis.encoding import by_values, encode, grid_for, noise_ceiling
from featx.artifacts.responses import read_responses
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.runtime.progress import Reporter


def data(images, width, responses=5, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(images, width)) + 2
    noise = np.array([1, 10, 30, 60, 90][:responses])
    return values, values @ generator.normal(size=(width, responses)) + noise * generator.normal(
        size=(images, responses)
    )


def expected(values, responses, folds, alphas):
    """r, R^2 and alphas, fold by fold."""
    r, r2, chosen = [], [], []
    for train, test in folds:
        model = RidgeCV(alphas, alpha_per_target=True).fit(values[train], responses[train])
        predicted = model.predict(values[test])
        pairs = list(zip(predicted.T, responses[test].T, strict=True))
        r.append([np.corrcoef(one, other)[0, 1] for one, other in pairs])
        r2.append([r2_score(other, one) for one, other in pairs])
        chosen.append(model.alpha_)
    return np.mean(r, 0), np.mean(r2, 0), np.array(chosen)


@pytest.mark.parametrize(("images", "width", "small"), [(60, 200, False), (61, 40, False), (120, 20, True)])
def test_it_is_ridge_cv_in_every_fold(images, width, small):
    values, responses = data(images, width)
    assert by_values(images, width) is small
    folds = list(KFold(4, shuffle=True, random_state=0).split(values))
    held_out = np.zeros((4, images), bool)
    for fold, (_, test) in enumerate(folds):
        held_out[fold, test] = True
    alphas = grid_for(values)
    found = encode(values, responses, held_out, alphas, torch.device("cpu"))
    r, r2, chosen = expected(values, responses, folds, alphas)
    np.testing.assert_allclose(found.r, r, atol=1e-8)
    np.testing.assert_allclose(found.r2, r2, atol=1e-8)
    assert (found.alphas == chosen).all()
    assert len(np.unique(chosen)) > 1


def test_a_response_that_does_not_vary_has_no_correlation():
    values, responses = data(40, 8, 2)
    responses[:, 1] = 3.0
    held_out = np.arange(40) % 4 == np.arange(4)[:, None]
    found = encode(values, responses, held_out, grid_for(values), torch.device("cpu"))
    assert np.isfinite(found.r[0])
    assert np.isnan(found.r[1])
    assert np.isnan(found.r2[1])


def test_the_ceiling_is_what_the_true_signal_reaches():
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(5000, 3))
    repeats = signal + np.array([0.5, 2.0, 4.0]) * generator.normal(size=(4, 5000, 3))
    reached = [np.corrcoef(signal[:, k], repeats.mean(0)[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(noise_ceiling(repeats), reached, atol=0.02)
    assert noise_ceiling(generator.normal(size=(3, 200, 1))).item() < 0.35  # nothing but noise


@pytest.fixture
def run(request):
    return request.getfixturevalue("featx")  # the library has the name here


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    values, responses = data(60, 30)
    path = write_features(
        tmp_path_factory.mktemp("f") / "f.h5", values.astype(np.float32), np.zeros(60, np.int32), ("a",), failed=(7,)
    )
    return path, responses


def test_the_command_predicts_as_scikit_learn_does(tmp_path, file, run):
    path, responses = file
    np.save(tmp_path / "r.npy", responses)
    result = run("encode", path, tmp_path / "r.npy", "-o", tmp_path / "out", "--folds", 3)
    assert result.status == 0, result.err
    assert "1 image failed, or have no responses" in result.err
    features = featx.open_features(path)
    layer = features.only_layer(None)
    kept = np.delete(np.arange(60), 7)
    values, given = features[layer][kept].astype(np.float64), responses[kept]
    from featx.heads.selection.folds import folds_of

    held_out = folds_of(np.zeros(59, np.int32), 3, 0, ["images"])
    r, r2, _ = expected(values, given, [(~one, one) for one in held_out], grid_for(values))
    with np.load(tmp_path / "out" / "encoding.npz") as stored:
        numbers = dict(stored)
    np.testing.assert_allclose(numbers["r"][0], r, atol=1e-8)
    np.testing.assert_allclose(numbers["r2"][0], r2, atol=1e-8)
    with (tmp_path / "out" / "encoding.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [float(line["r"]) for line in table] == pytest.approx(r, abs=1e-6)
    assert (tmp_path / "out" / "encoding.png").stat().st_size > 5000
    with pytest.raises(PlanMismatch, match="--folds 3, now 4"):
        featx.encode_responses(path, tmp_path / "r.npy", tmp_path / "out", featx.EncodeConfig(folds=4))


def test_every_way_to_write_responses_is_the_same(tmp_path, file):
    path, responses = file
    paths = featx.open_features(path).paths
    repeats = responses + np.random.default_rng(1).normal(size=(2, *responses.shape))
    np.save(tmp_path / "r.npy", repeats)
    with h5py.File(tmp_path / "r.h5", "w") as out:
        out["one"], out["other"] = repeats, np.zeros(3)
    with (tmp_path / "r.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", *(f"v{k}" for k in range(5))])
        for place in np.random.default_rng(0).permutation(60):
            writer.writerows([paths[place], *map(repr, one.tolist())] for one in repeats[:, place])
    found = {}
    for name in ("r.npy", "r.h5:/one", "r.csv"):
        folder = tmp_path / name.replace(":/", "-")
        report = featx.encode_responses(path, f"{tmp_path}/{name}", f"{folder}-out")
        with np.load(f"{folder}-out/encoding.npz") as stored:
            found[name] = dict(stored)
        assert report.columns[-1] == "median r / ceiling"
    for name in ("r.h5:/one", "r.csv"):
        for key in ("r", "ceiling"):
            np.testing.assert_allclose(found[name][key], found["r.npy"][key], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "make", "error", "says"),
    [
        ("r.npy", lambda path: np.save(path, np.zeros((59, 2))), UsageError, "(59, 2)"),
        ("r.npy", lambda path: np.save(path, np.full((60, 2), np.nan)), UsageError, "must be a finite number"),
        ("r.npy", lambda path: np.save(path, np.array([["a"] * 2] * 60)), FileFormatError, "no numbers"),
        ("r.npy", lambda path: path.write_bytes(b"no"), FileFormatError, "cannot be read as .npy"),
        ("r.csv", lambda path: path.write_text("a,b\n"), FileFormatError, "needed are a column path"),
        ("r.csv", lambda path: path.write_text("path,v\nnowhere.jpg,1\n"), UsageError, "has no image nowhere.jpg"),
        ("r.csv", lambda path: path.write_text("path,v\nx\n"), FileFormatError, "line 2: 1 fields"),
        ("r.csv", lambda path: path.write_text("path,a,b\n"), UsageError, "names no image"),
        ("r.npy", lambda path: np.save(path, np.zeros((60, 0))), UsageError, "(60, 0)"),
        ("gone.npy", lambda path: None, FileFormatError, "no file"),
    ],
)
def test_bad_responses_are_one_line(tmp_path, file, name, make, error, says):
    make(tmp_path / name)
    with pytest.raises(error) as caught:
        featx.encode_responses(file[0], tmp_path / name, tmp_path / "out")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """28 photographs, four of them copies, through a network: two layers; and three repeats of four responses."""
    from conftest import write_photo

    folder = tmp_path_factory.mktemp("two")
    for number in range(24):
        write_photo(folder / "photos" / f"{number:02d}.png", number, (64, 64))
    for number in range(4):
        (folder / "photos" / f"copy-{number}.png").write_bytes((folder / "photos" / f"{number:02d}.png").read_bytes())
    config = featx.ExtractConfig(backbone="alexnet-mini", layers="conv5,fc7", pool="avg", device="cpu")
    featx.extract_features(folder / "photos", folder / "f.h5", config)
    features = featx.open_features(folder / "f.h5")
    generator = np.random.default_rng(0)
    signal = features["fc7"][:].astype(np.float64) @ generator.normal(size=(features["fc7"].shape[1], 4))
    signal = signal / signal.std(0)
    return folder / "f.h5", signal + 0.5 * generator.normal(size=(3, len(features), 4))


def test_every_layer_has_its_own_numbers_copies_one_fold_and_repeats_their_mean(tmp_path, two_layers):
    from featx.artifacts.head_rows import kept_together
    from featx.heads.selection.folds import folds_of

    path, repeats = two_layers
    np.save(tmp_path / "r.npy", repeats)
    config = featx.EncodeConfig(folds=3, seed=3)
    report = featx.encode_responses(path, tmp_path / "r.npy", tmp_path / "out", config)
    features, rows = featx.open_features(path), np.arange(28)
    together = kept_together(features, rows)
    assert len(np.unique(together)) == 24
    held_out = folds_of(np.zeros(28, np.int32), 3, 3, ["images"], together)
    with np.load(tmp_path / "out" / "encoding.npz") as numbers:
        found = dict(numbers)
    ceiling = noise_ceiling(repeats)
    np.testing.assert_allclose(found["ceiling"], ceiling)
    with (tmp_path / "out" / "encoding.csv").open() as lines:
        table = list(csv.DictReader(lines))
    for place, layer in enumerate(("conv5", "fc7")):
        values = features[layer][:].astype(np.float64).reshape(28, -1)
        folds = [(~one, one) for one in held_out]
        r, r2, chosen = expected(values, repeats.mean(0), folds, grid_for(values))
        np.testing.assert_allclose(found["r"][place], r, atol=1e-6)
        np.testing.assert_allclose(found["r2"][place], r2, atol=1e-5)
        assert (found["alphas"][place] == chosen).all()
        own = [line for line in table if line["layer"] == layer]
        for key, numbers in (("r", r), ("r2", r2), ("ceiling", ceiling), ("r_of_ceiling", r / ceiling)):
            assert [float(line[key]) for line in own] == pytest.approx(numbers, abs=2e-5), key
        low, middle, high = np.percentile(r, [25, 50, 75])
        shown = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{r.max():.3f}", f"{np.median(r / ceiling):.3f}"]
        assert report.rows[place] == [layer, *shown]
    assert not np.allclose(found["r"][0], found["r"][1], atol=1e-3)
    notes, odd = [], repeats.copy()
    odd[:, :, 0] = 3.0  # no correlation
    odd[0, :, 1], odd[1, :, 1] = np.arange(28), -np.arange(28)  # nothing that repeats
    np.save(tmp_path / "odd.npy", odd)
    reporter = type("Kept", (Reporter,), {"note": lambda self, text: notes.append(text)})()
    featx.encode_responses(path, tmp_path / "odd.npy", tmp_path / "odd", config, reporter=reporter)
    assert "note: left out, as they are the same for every image: 1 response" in notes
    assert "note: left out of r / ceiling, as their noise ceiling is 0: 1 response" in notes
    repeats[1, 5, 2] += 1
    np.save(tmp_path / "r.npy", repeats)
    with pytest.raises(PlanMismatch):
        featx.encode_responses(path, tmp_path / "r.npy", tmp_path / "out", config)


def test_a_list_of_some_images_is_of_these(tmp_path, two_layers):
    path, repeats = two_layers
    features = featx.open_features(path)
    chosen = np.arange(1, 28, 2)
    with (tmp_path / "r.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["a", "path"])
        writer.writerows([repr(float(repeats[0, row, 0])), features.paths[row]] for row in chosen)
    given = read_responses(tmp_path / "r.csv", features)
    assert given.rows.tolist() == chosen.tolist()
    assert given.left_out == 14
    np.testing.assert_array_equal(given.values[0, :, 0], repeats[0, chosen, 0])


def test_the_unit_of_responses_does_not_matter():
    values, responses = data(40, 8, 3)
    held_out = np.arange(40) % 4 == np.arange(4)[:, None]
    alphas, cpu = grid_for(values), torch.device("cpu")
    found = encode(values, responses, held_out, alphas, cpu)
    for unit in (1e200, 1e-200):
        again = encode(values, responses * unit, held_out, alphas, cpu)
        np.testing.assert_allclose(again.r, found.r, rtol=1e-9)
        np.testing.assert_allclose(again.r2, found.r2, rtol=1e-9)
        assert (again.alphas == found.alphas).all()
